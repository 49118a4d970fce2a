"""Two keys of one config that name the same images, however they spell it, are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clip_ood.config import checks
from clip_ood.config.checks import check_folders, check_places
from clip_ood.config.loading import CONFIGS, load_config, validate
from clip_ood.errors import ConfigError
from clip_ood.experiments.benchmarks import load_benchmark


@pytest.fixture
def root(tmp_path):
    for place in ("id/cat", "id/dog", "other", "train", "test"):
        (tmp_path / "data" / place).mkdir(parents=True)
    (tmp_path / "data" / "link").symlink_to("id")
    (tmp_path / "elsewhere").symlink_to("data")
    for name in ("a-00.tar", "a-01.tar", "list.txt", "words.txt"):
        (tmp_path / "data" / name).touch()
    (tmp_path / "data" / "lists").mkdir()
    (tmp_path / "data" / "lists" / "again.txt").symlink_to("../list.txt")
    return tmp_path


def check(root, **data):
    sections = {"name": "x", "backbone": {"model": "RN50"}, "method": {"zero_shot": {}}}
    check_folders(validate(sections | {"data": {"root": str(root / "data"), **data}}))


@pytest.mark.parametrize(
    "data",
    [
        {"id": "id", "ood": {"me": "id"}},
        {"id": "id", "ood": {"me": "id/"}},
        {"id": "id", "ood": {"me": "./other/../id"}},
        {"id": "id", "ood": {"me": "link"}},
        {"id": "id", "csid": {"me": "link/."}},
        {"id": {"train": "train", "test": "train"}},
        {"id": {"train": "train", "val": "test", "test": "test"}},
        {"id": "id", "ood": {"a": "other", "b": {"folder": "other", "per_class": 3}}},
        {"id": "id", "ood": {"a": "other"}, "csid": {"b": "other"}},
        {"id": "id", "ood": {"a": {"list": "list.txt"}, "b": {"list": "lists/again.txt", "images_root": "other"}}},
        {"id": "id", "ood": {"a": {"shards": "a-{00..01}.tar"}, "b": {"shards": "a-01.tar"}}},
        {"id": {"images": {"torchvision": "CIFAR10", "split": "test"}}, "ood": {"me": {"torchvision": "CIFAR10"}}},
    ],
    ids=str,
)
def test_one_place_under_two_keys_is_refused(root, data):
    with pytest.raises(ConfigError, match=r"data\.\S+ and data\.\S+ name the same images \(.*Name other images"):
        check(root, **data)


def test_a_place_is_the_same_through_a_linked_root_and_absolute(root):
    with pytest.raises(ConfigError, match=r"data\.id and data\.ood\.me name the same images"):
        check(root, id="id", ood={"me": str(root / "elsewhere" / "id")})


@pytest.mark.parametrize(
    "data",
    [
        {"id": "id", "ood": {"a": "other", "b": "train"}},
        {
            "id": "id",
            "ood": {"blur": {"corruption": "jpeg", "severity": 1}, "more": {"corruption": "jpeg", "severity": 2}},
        },
        {"id": "id", "ood": {"a": {"list": "list.txt", "images_root": "other"}, "b": "other"}},
        {"id": {"train": {"torchvision": "CIFAR10", "split": "train"}, "test": {"torchvision": "CIFAR10"}}},
    ],
    ids=str,
)
def test_other_places_are_not(root, data):
    check(root, **data)


# Folders in folders, and images that lists, links and folders share


def image(root, *places):
    for place in places:
        (root / "data" / place).parent.mkdir(parents=True, exist_ok=True)
        (root / "data" / place).touch()


@pytest.mark.parametrize(
    "data",
    [
        {"id": "id", "ood": {"inside": "id/cat"}},
        {"id": "id", "csid": {"inside": "id/cat/"}},
        {"id": "id", "ood_val": "./id/cat"},
        {"id": "id/cat", "ood": {"around": "id"}},
        {"id": "link/cat", "ood": {"around": "id"}},
        {"id": "id", "ood": {"inside": "link/dog"}},
        {"id": {"train": ".", "test": "test"}},
        {"id": "other", "ood": {"all": "id"}, "csid": {"some": "id/cat"}},
        {"id": "other", "ood": {"all": "id"}, "ood_val": "id/cat"},
    ],
    ids=str,
)
def test_a_folder_within_another_one_is_refused(root, data):
    with pytest.raises(
        ConfigError, match=r"data\.\S+ \(.*\) lies in data\.\S+ \(.*Move it out, or name the folders of"
    ):
        check(root, **data)


def test_what_nobody_lists_is_no_part_of_a_folder(root):
    for left_out in (".kept", "@eaDir"):
        (root / "data" / "id" / left_out / "ood").mkdir(parents=True)
    check(
        root,
        id="id",
        ood={"hidden": "id/.kept/ood", "thumbnails": "id/@eaDir/ood", "all": "train", "half": "train"}
        | {"half": "test"},
    )
    (root / "data" / "train" / "half").mkdir()
    check(root, id="id", ood={"all": "train", "half": "train/half"})


def test_a_place_is_known_by_what_it_is_not_by_its_name(root, monkeypatch):
    """As on a file system that ignores case: id and ID are one folder, by any spelling."""
    monkeypatch.setattr(checks, "stat", lambda path: os.stat(str(path).replace("/ID", "/id")))
    monkeypatch.setattr(Path, "is_dir", lambda path: os.path.isdir(str(path).replace("/ID", "/id")))
    with pytest.raises(ConfigError, match=r"data\.id and data\.ood\.me name the same images"):
        check(root, id="id", ood={"me": "ID"})
    with pytest.raises(ConfigError, match=r"data\.ood\.me \(.*\) lies in data\.id"):
        check(root, id="id", ood={"me": "ID/cat"})


def listed(root, **data):
    sections = {"name": "x", "backbone": {"library": "timm", "model": "test_vit"}, "method": {"zero_shot": {}}}
    return load_benchmark(validate(sections | {"data": {"root": str(root / "data"), **data}}))


@pytest.fixture
def photos(root):
    """Six photographs, a list of them, its copy, and one that spells them otherwise."""
    names = [f"photos/{each}.png" for each in "abcdef"]
    image(root, *names, "other/x.png", "other/y.png")
    lists = {
        "one": names,
        "copy": names,
        "odd": [f"./link2/../photos/{each}.png" for each in "abcdef"],
        "last": names[5:],
    }
    (root / "data" / "link2").symlink_to("photos")
    for name, lines in (lists | {"other": ["other/x.png", "photos/a.png"], "own": ["other/x.png"]}).items():
        (root / "data" / f"{name}.txt").write_text("".join(f"{line} -1\n" for line in lines))
    return root


@pytest.mark.parametrize(
    "data, message",
    [
        (
            {"id": "photos", "ood": {"me": {"list": "one.txt"}}},
            "6 of 6 images of data.ood.me are images of data.id as well",
        ),
        ({"id": {"images": {"list": "one.txt"}}, "ood": {"me": {"list": "copy.txt"}}}, "6 of 6 images of data.ood.me"),
        ({"id": {"images": {"list": "one.txt"}}, "ood": {"me": {"list": "odd.txt"}}}, "6 of 6 images of data.ood.me"),
        ({"id": "photos", "ood": {"me": {"list": "other.txt"}}}, r"1 of 2 images of data.ood.me .*\(photos/a.png\)"),
        (
            {"id": {"train": {"list": "one.txt"}, "test": {"list": "last.txt"}}},
            "1 of 1 images of data.id.test are images of data.id.train",
        ),
        (
            {"id": "other", "ood": {"a": "photos"}, "csid": {"b": {"list": "last.txt"}}},
            "6 images of data.ood.a are images of data.csid.b",
        ),
        (
            {"id": "other", "ood": {"a": "photos"}, "ood_val": {"list": "last.txt"}},
            "1 of 1 images of data.ood_val are images of data.ood.a",
        ),
    ],
    ids=str,
)
def test_images_that_two_sides_share_are_refused(photos, data, message):
    with pytest.raises(ConfigError, match=f"{message}.*Take them out of one of both"):
        listed(photos, **data)


def test_a_link_within_a_folder_shares_what_it_leads_to(photos):
    (photos / "data" / "other" / "more").symlink_to("../photos")
    with pytest.raises(
        ConfigError, match=r"6 of 8 images of data\.ood\.me are images of data\.id as well \(more/a\.png\)"
    ):
        listed(photos, id="photos", ood={"me": "other"})


def test_ood_sets_may_be_one_and_its_half(photos):
    found = listed(photos, id="other", ood={"all": "photos", "half": {"list": "last.txt"}, "one": {"list": "one.txt"}})
    assert [len(part.rows) for part in found.parts.values() if part.role == "ood"] == [6, 1, 6]
    assert len(listed(photos, id="photos", ood={"own": {"list": "own.txt"}}).parts["ood/own"].rows) == 1


def test_nothing_of_the_kind_is_in_a_shipped_config():
    for path in sorted(CONFIGS.glob("*.yaml")):
        check_places(load_config(str(path)))
