"""From folders, lists and CIFAR to image lists, splits and the parts of an evaluation; no image is decoded."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, CIFAR100

from clip_ood.config.loading import validate
from clip_ood.config.schema import ImageSet
from clip_ood.data.class_names import imagenet_wnids
from clip_ood.data.image_list import ImageList, balanced
from clip_ood.data.listing import list_images
from clip_ood.data.readers.files import Files
from clip_ood.data.splits import split
from clip_ood.errors import ConfigError
from clip_ood.experiments.benchmarks import load_benchmark


def fill(root, **counts):
    """Empty files `0.png`, `1.png` … in the folders that are named, a/b written as a__b."""
    for folder, count in counts.items():
        (root / folder.replace("__", "/")).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            (root / folder.replace("__", "/") / f"{index}.png").touch()
    return root


def listed(root, labelled=True, seed=0, **spec):
    return list_images("photos", ImageSet(**spec), root, labelled, seed)


# Folders


def test_class_folders_number_the_classes_by_name(tmp_path):
    images = listed(fill(tmp_path, id__red_fox=2, id__ant=1), folder="id")
    assert images.names == ("ant/0.png", "red_fox/0.png", "red_fox/1.png")
    assert images.labels == (0, 1, 1) and images.class_names == ("ant", "red fox")


def test_a_flat_folder_has_no_labels(tmp_path):
    images = listed(fill(tmp_path, id=3), folder="id")
    assert images.names == ("0.png", "1.png", "2.png") and images.labels is None and images.class_names is None


def test_an_ood_folder_is_taken_as_a_whole(tmp_path):
    images = listed(fill(tmp_path, ood=1, ood__a=1, ood__a__deep=1), labelled=False, folder="ood")
    assert images.names == ("0.png", "a/0.png", "a/deep/0.png") and images.labels is None


@pytest.mark.parametrize(
    "counts, message",
    [
        ({"id": 1, "id__a": 1}, "also 1 images beside them"),
        ({"id__a": 1, "id__b": 0}, "class folder .*b holds no images"),
        ({"id": 0}, "photos: .*id holds no images"),
    ],
)
def test_folders_that_cannot_be_meant(counts, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        listed(fill(tmp_path, **counts), folder="id")


def test_other_files_are_passed_over_and_named_once_but_hidden_ones_never(tmp_path, capsys):
    fill(tmp_path, id__a=2, id__b=1, **{"id__.cache": 1})
    for name in ("notes.txt", "a/foo.pdf", "a/Thumbs.db", ".DS_Store", "a/._0.png"):
        (tmp_path / "id" / name).touch()
    assert len(listed(tmp_path, folder="id")) == 3
    assert capsys.readouterr().out.splitlines() == [
        "Image set photos: 2 files are passed over for want of an image extension (a/foo.pdf)"
    ]


def test_links_are_followed_and_one_that_leads_back_is_an_error(tmp_path):
    fill(tmp_path, elsewhere=2, id__a=1)
    (tmp_path / "id" / "b").symlink_to(tmp_path / "elsewhere")
    assert len(listed(tmp_path, folder="id")) == 3
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "id")
    with pytest.raises(ConfigError, match=r"photos: the link .*back leads back to .*id"):
        listed(tmp_path, folder="id")


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    scan = os.scandir

    def forbidden(folder):
        if Path(folder).name == "b":
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr("clip_ood.data.class_folders.os.scandir", forbidden)
    with pytest.raises(ConfigError, match=r"photos: the folder .*b cannot be read \(Permission denied\)"):
        listed(fill(tmp_path, id__a=1, id__b=1), folder="id")


def test_a_link_to_nothing_is_named(tmp_path):
    (fill(tmp_path, id=1) / "id" / "gone.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"photos: .*gone\.png"):
        listed(tmp_path, folder="id").stamps()


# Lists


def test_a_list_with_labels_none_and_spaces(tmp_path):
    fill(tmp_path, images=3)
    (tmp_path / "images" / "two words.png").touch()
    (tmp_path / "list.txt").write_text("0.png 4\n\ntwo words.png -1\n1.png\t0\n  2.png  2  \n")
    images = listed(tmp_path, list="list.txt", images_root="images")
    assert images.names == ("0.png", "two words.png", "1.png", "2.png") and images.labels == (4, -1, 0, 2)


def test_a_list_without_any_label_is_unlabelled(tmp_path):
    (fill(tmp_path, images=2) / "list.txt").write_text("images/0.png -1\nimages/1.png -1\n")
    assert listed(tmp_path, list="list.txt").labels is None


@pytest.mark.parametrize(
    "line, message",
    [
        ("images/0.png", "line 2: expected"),
        ("images/0.png cat", "line 2: expected"),
        ("images/0.png --1", "line 2: expected"),
        ("3", "line 2: expected"),
        ("images/9.png 0", "lists images/9.png, which is not under .*images_root"),
        ("images/1.png 0", "lists images/1.png more than once"),
        ("./images//1.png 1", r"line 2: lists \./images//1.png more than once \(first in line 1\)"),
    ],
)
def test_wrong_lines_of_a_list_are_named(line, message, tmp_path):
    (fill(tmp_path, images=2) / "list.txt").write_text(f"images/1.png 0\n{line}\n")
    with pytest.raises(ConfigError, match=f"photos: .*list.txt.*{message}"):
        listed(tmp_path, list="list.txt")


def test_an_empty_list_is_an_error(tmp_path):
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(ConfigError, match=r"photos: .*list\.txt holds no images"):
        listed(tmp_path, list="list.txt")


# CIFAR


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Both CIFARs as torchvision keeps them, with 20 images a file: 10 classes of 2, 20 classes of 1."""
    for kind, folder, names in ((CIFAR10, "cifar-10-batches-py", 10), (CIFAR100, "cifar-100-python", 20)):
        (tmp_path / folder).mkdir()
        for number, (file, _) in enumerate([*kind.train_list, *kind.test_list]):
            content = {"data": np.full((20, 3 * 32 * 32), number, np.uint8)}
            content["labels" if kind is CIFAR10 else "fine_labels"] = [index % names for index in range(20)]
            (tmp_path / folder / file).write_bytes(pickle.dumps(content))
        classes = [f"thing_{label}" for label in range(names)]
        meta = tmp_path / folder / kind.meta["filename"]
        meta.write_bytes(pickle.dumps({kind.meta["key"]: classes}))
        monkeypatch.setattr(kind, "train_list", [(file, None) for file, _ in kind.train_list])
        monkeypatch.setattr(kind, "test_list", [(file, None) for file, _ in kind.test_list])
        monkeypatch.setattr(kind, "meta", kind.meta | {"md5": None})
    return tmp_path


@pytest.mark.parametrize("name, split, count, value", [("CIFAR10", "train", 100, 0), ("CIFAR100", "test", 20, 1)])
def test_cifar(name, split, count, value, cifar):
    images = listed(cifar, torchvision=name, split=split)
    assert len(images) == len(set(images.names)) == count and images.class_names[1] == "thing 1"
    assert images.read(0).size == (32, 32) and images.read(0).getpixel((0, 0)) == (value,) * 3
    assert images.labels[:3] == (0, 1, 2)


def test_a_draw_of_cifar_keeps_pixels_and_labels_together(cifar):
    whole, few = (listed(cifar, torchvision="CIFAR10", split="train", per_class=n) for n in (None, 3))
    places = [whole.names.index(name) for name in few.names]
    assert Counter(few.labels) == dict.fromkeys(range(10), 3)
    assert few.labels == tuple(whole.labels[place] for place in places)
    for index, place in enumerate(places):
        assert few.read(index).tobytes() == whole.read(place).tobytes()
    np.testing.assert_array_equal(few.identities(), whole.identities()[places])


def test_a_failed_download_says_what_and_where(tmp_path, monkeypatch):
    def fails(self):
        raise OSError("no network")

    monkeypatch.setattr(CIFAR10, "download", fails)
    with pytest.raises(ConfigError, match=f"photos: .*CIFAR10.*{tmp_path}: no network"):
        listed(tmp_path, torchvision="CIFAR10")


# Draws and splits


def test_a_draw_is_seeded_balanced_and_takes_all_of_a_small_class(tmp_path):
    fill(tmp_path, id__a=30, id__b=2)
    draws = [listed(tmp_path, seed=seed, folder="id", per_class=5).names for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert Counter(name[0] for name in draws[0]) == {"a": 5, "b": 2}


@pytest.mark.parametrize("spec", [{"folder": "flat"}, {"list": "list.txt"}])
def test_a_draw_without_classes_is_an_error(spec, tmp_path):
    (fill(tmp_path, flat=2) / "list.txt").write_text("flat/0.png -1\n")
    with pytest.raises(ConfigError, match=r"photos: per_class needs classes, and .*(flat|list\.txt) has none"):
        listed(tmp_path, per_class=1, **spec)


def made(*counts):
    names = [f"{label}/{index}" for label, count in enumerate(counts) for index in range(count)]
    return ImageList.of("id", Path(), Files(Path(), names, [int(name.split("/")[0]) for name in names]))


SHARES = {"test": 0.3, "val": 0.2}


def named(images, seed=0):
    return {part: [images.names[row] for row in rows] for part, rows in split(images, SHARES, "train", seed).items()}


def test_every_image_is_in_one_part_and_every_class_in_its_share():
    parts = named(made(50, 20))
    assert sorted(name for names in parts.values() for name in names) == sorted(made(50, 20).names)
    for label, counts in (("0", (15, 10, 25)), ("1", (6, 4, 10))):
        assert tuple(sum(name[0] == label for name in parts[part]) for part in ("test", "val", "train")) == counts


def test_a_split_depends_on_the_seed_and_not_on_the_order_of_the_files():
    images = made(20, 20)
    turned = images.subset(range(len(images))[::-1])
    assert named(images, 1) != named(images, 0)
    assert {part: set(names) for part, names in named(turned).items()} == {
        part: set(names) for part, names in named(images).items()
    }


def test_a_new_image_moves_hardly_any_other():
    before, after = named(made(40, 40)), named(made(41, 40))
    place = {name: part for part, names in before.items() for name in names}
    moved = [name for part, names in after.items() for name in names if place.get(name, part) != part]
    assert len(moved) <= 2 and not any(name.startswith("1/") for name in moved)


@pytest.mark.parametrize("count, sizes", [(1, (0, 0, 1)), (2, (1, 0, 1)), (3, (1, 1, 1))])
def test_a_tiny_class_keeps_a_training_image(count, sizes):
    parts = named(made(count))
    assert tuple(len(parts[part]) for part in ("test", "val", "train")) == sizes


# Benchmarks


def benchmark(root, data=None, **more):
    data = {"root": str(root), "id": "id", "ood": {}} | (data or {})
    backbone = {"library": "timm", "model": "test_vit"}
    return load_benchmark(
        validate({"name": "x", "data": data, "backbone": backbone, "method": {"zero_shot": {}}, **more})
    )


PUBLISHED = {"id": {"train": "train", "test": "test"}}


def test_the_order_of_the_parts_and_their_labels(tmp_path):
    fill(tmp_path, id__a=10, id__b=10, shifted__b=3, near=2, far__a=4)
    ood = {"near": "near", "far": {"folder": "far", "group": "far"}}
    found = benchmark(tmp_path, {"csid": {"shifted": "shifted"}, "ood": ood})
    assert list(found.parts) == ["bank", "id_test", "csid/shifted", "ood/near", "ood/far", "train", "val"]
    assert [part.role for part in found.evaluated] == ["bank", "val", "id", "csid", "ood", "ood"]
    assert found.class_names == ("a", "b") and found.labelled and found.parts["ood/far"].group == "far"
    assert {name: Counter(found.labels(part)) for name, part in found.parts.items()} == {
        "bank": {0: 5, 1: 5},
        "id_test": {0: 3, 1: 3},
        "csid/shifted": {1: 3},
        "ood/near": {-1: 2},
        "ood/far": {-1: 4},
        "train": {0: 5, 1: 5},
        "val": {0: 2, 1: 2},
    }


def test_a_published_split_holds_val_out_of_train(tmp_path):
    found = benchmark(fill(tmp_path, train__a=10, train__b=5, test__a=2, test__b=2), PUBLISHED)
    assert [found.parts[part].images for part in ("train", "val", "id_test")] == ["id.train", "id.train", "id.test"]
    train, val = (set(found.parts[part].rows) for part in ("train", "val"))
    assert not train & val and train | val == set(range(15)) and len(val) == 3
    assert found.parts["id_test"].rows == [0, 1, 2, 3]


def test_a_published_val_is_taken_as_it_is(tmp_path):
    fill(tmp_path, train__a=10, train__b=5, val__a=1, test__a=2)
    found = benchmark(tmp_path, {"id": PUBLISHED["id"] | {"val": "val"}})
    assert (found.parts["val"].images, found.parts["val"].rows) == ("id.val", [0])
    assert len(found.parts["train"].rows) == 15


@pytest.mark.parametrize("source", ["list", "file"])
def test_given_class_names_stand_in_the_order_of_the_labels(source, tmp_path):
    (fill(tmp_path, id__n01=2, id__n02=2) / "names.txt").write_text("tench\n\n goldfish \n")
    names = ["tench", "goldfish"] if source == "list" else "names.txt"
    assert benchmark(tmp_path, {"id": {"images": "id", "class_names": names}}).class_names == ("tench", "goldfish")


def test_imagenets_names_are_a_thousand_distinct_ones(tmp_path):
    fill(tmp_path, **{f"id__{wnid}": 2 for wnid in imagenet_wnids()})
    names = benchmark(tmp_path, {"id": {"images": "id", "class_names": "imagenet"}}).class_names
    assert len(set(names)) == 1000 and (names[0], names[134], names[517]) == (
        "tench",
        "crane bird",
        "construction crane",
    )


@pytest.mark.parametrize("own_names", [False, True])
def test_a_set_that_lacks_a_class_keeps_the_numbers_of_the_training_classes(own_names, tmp_path):
    fill(tmp_path, train__a=4, train__b_b=4, train__c=4, test__a=1, test__c=2, shifted__b_b=1, shifted__c=1)
    id_set = PUBLISHED["id"] | ({"class_names": ["A", "B", "C"]} if own_names else {})
    found = benchmark(tmp_path, {"id": id_set, "csid": {"shifted": "shifted"}})
    assert found.labels(found.parts["id_test"]) == [0, 2, 2]
    assert found.labels(found.parts["csid/shifted"]) == [1, 2]
    assert found.class_names == (("A", "B", "C") if own_names else ("a", "b b", "c"))


def test_an_ood_set_with_classes_of_its_own_is_no_error(cifar):
    sets = {part: {"torchvision": "CIFAR10", "split": part} for part in ("train", "test")}
    ood = {"cifar100": {"torchvision": "CIFAR100", "per_class": 1}}
    found = benchmark(cifar, {"id": sets, "ood": ood})
    assert found.labels(found.parts["ood/cifar100"]) == [-1] * 20 and len(found.parts["val"].rows) == 20


def test_a_draw_of_an_ood_set_goes_by_its_folders(tmp_path):
    fill(tmp_path, id=5, ood__x=4, ood__y=2)
    found = benchmark(tmp_path, {"ood": {"near": {"folder": "ood", "per_class": 2}}})
    assert Counter(name[0] for name in found.images["ood/near"].names) == {"x": 2, "y": 2}


@pytest.mark.parametrize(
    "counts, data, message",
    [
        ({}, {"id": {"images": "id", "class_names": ["x", "y", "z"]}}, "has 3 names for 2 classes"),
        ({}, {"id": {"images": "id", "class_names": ["x", "x"]}}, "'x' stands for 2 classes"),
        ({"id__a_b": 1, "id__a b": 1}, {}, "'a b' stands for 2 classes"),
        ({}, {"id": {"images": "id", "class_names": "gone.txt"}}, r"class_names: there is no file .*gone\.txt"),
        ({"id__empty": 0}, {}, "class folder .*empty holds no images"),
        ({"near": 0}, {"ood": {"near": "near"}}, "near: .* holds no images"),
        ({}, {"ood": {"near": {"folder": "near", "source": "example.org"}}}, "near: .*near.* to get it: example.org"),
        ({"test__z": 1}, {"id": {"train": "id", "test": "test"}}, "id.test: class 'z' is not among the training"),
        ({"shifted__z": 1}, {"csid": {"shifted": "shifted"}}, "shifted: class 'z' is not among the training"),
        ({"one": 1}, {"id": "one"}, r"\(1\) leave none for id_test"),
    ],
)
def test_what_cannot_be_evaluated_is_named(counts, data, message, tmp_path):
    fill(tmp_path, id__a=3, id__b=3, **counts)
    with pytest.raises(ConfigError, match=message):
        benchmark(tmp_path, data)


def test_a_label_far_beyond_the_others_is_named_without_counting_to_it(tmp_path):
    fill(tmp_path, id__a=2)
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text(f"id/a/0.png 0\nid/a/1.png {2**32 - 1}\n")
    told = {False: rf"no image has label 1, and labels count 0 … {2**32 - 1}: number the classes"}
    told[True] = rf"id\.train: it has the label {2**32 - 1}, and labels lie below 1,000,000"
    for partial, message in told.items():
        id_sets = {"train": {"list": "train.txt"}, "test": {"list": "test.txt"}}
        with pytest.raises(ConfigError, match=message):
            benchmark(tmp_path, {"id": id_sets, "allow_partial": partial})


def test_a_label_beyond_the_class_names_is_named(tmp_path):
    fill(tmp_path, id__a=3, id__b=3)
    (tmp_path / "test.txt").write_text("id/a/0.png 0\nid/a/1.png 2\n")
    with pytest.raises(ConfigError, match=r"id\.test: label 2 is not among the 2 classes"):
        benchmark(tmp_path, {"id": {"train": "id", "test": {"list": "test.txt"}}})


def test_the_bank_is_a_draw_of_the_training_images(tmp_path):
    found = benchmark(fill(tmp_path, id__a=20, id__b=4), evaluation={"bank_per_class": 3})
    assert set(found.parts["bank"].rows) < set(found.parts["train"].rows)
    assert Counter(found.labels(found.parts["bank"])) == {0: 3, 1: 2}


def test_a_bank_by_class_needs_classes(tmp_path):
    with pytest.raises(ConfigError, match="bank_per_class needs classes"):
        benchmark(fill(tmp_path, id=9), evaluation={"bank_per_class": 3})


def test_without_ood_sets_and_labels_there_are_still_parts_to_score(tmp_path):
    found = benchmark(fill(tmp_path, id=10))
    assert {part.name: len(part.rows) for part in found.evaluated} == {"bank": 5, "val": 2, "id_test": 3}
    assert found.class_names is None and not found.labelled and found.labels(found.parts["id_test"]) == [-1] * 3


def test_a_draw_ignores_the_order_of_the_files():
    images = made(20, 20)
    turned = images.subset(range(len(images))[::-1])
    draws = [{each.names[row] for row in balanced(each, 4, seed=0)} for each in (images, turned)]
    assert draws[0] == draws[1]
