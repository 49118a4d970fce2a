"""Two keys of one config that name the same images, however they spell it, are refused."""

from __future__ import annotations

import pytest

from configs.checks import check_folders, check_places
from configs.errors import ConfigError
from configs.loading import HERE, load_config, validate


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


def test_nothing_of_the_kind_is_in_a_shipped_config():
    for path in sorted(HERE.glob("*.yaml")):
        check_places(load_config(str(path)))
