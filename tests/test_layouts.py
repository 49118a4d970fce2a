"""Replicas of published layouts read back: counts, labels, names, splits; what is wrong is named by file and line."""

from __future__ import annotations

import io
import pickle
import re
import shutil
from collections import Counter

import numpy as np
import pytest
import replica
from PIL import Image
from replica import CLASSES, TRAIN, put, validation

from clip_ood.config.loading import validate
from clip_ood.config.schema import ImageSet
from clip_ood.data.class_names import imagenet_names
from clip_ood.data.listing import list_images
from clip_ood.errors import ConfigError
from clip_ood.experiments.benchmarks import load_benchmark

ORDER = sorted(CLASSES)
NAMES = dict(zip(replica.WNIDS, imagenet_names(), strict=True))


def benchmark(root, block, **data):
    content = {"name": "x", "data": {**block, "root": str(root), "allow_partial": True, **data}}
    return load_benchmark(
        validate(content | {"backbone": {"library": "timm", "model": "test_vit"}, "method": {"zero_shot": {}}})
    )


def block(name):
    from clip_ood.config.loading import find_config, read

    return read(find_config(f"benchmarks/{name}.yaml"))


def listed(root, partial=True, **spec):
    return list_images("photos", ImageSet(**spec), root, True, 0, partial)


# ImageNet


@pytest.fixture(params=["devkit", "kaggle", "kaggle's tree", "wnid folders"])
def imagenet(request, tmp_path):
    """The same images in each layout of the validation set."""
    top = replica.imagenet(tmp_path) / "imagenet"
    if request.param != "devkit":
        shutil.rmtree(top / "ILSVRC2012_devkit_t12")
    if request.param == "kaggle":
        replica.kaggle(top / "LOC_val_solution.csv")
    if request.param == "kaggle's tree":
        replica.kaggle(tmp_path / "LOC_val_solution.csv")
        (tmp_path / "ILSVRC" / "Data").mkdir(parents=True)
        top.rename(tmp_path / "ILSVRC" / "Data" / "CLS-LOC")
    if request.param == "wnid folders":
        for number, wnid in enumerate(validation(), start=1):
            image = top / "val" / f"ILSVRC2012_val_{number:08d}.JPEG"
            (top / "val" / wnid).mkdir(exist_ok=True)
            image.rename(top / "val" / wnid / image.name)
    return tmp_path


def test_imagenet_in_every_layout_has_the_same_labels_and_names(imagenet, capsys):
    found = benchmark(imagenet, block("imagenet"))
    assert found.class_names == tuple(NAMES[wnid] for wnid in ORDER)
    test = found.images["id.test"]
    truth = {f"ILSVRC2012_val_{n:08d}": wnid for n, wnid in enumerate(validation(), start=1)}
    assert {
        name.split("/")[-1][:-5]: ORDER[label] for name, label in zip(test.names, test.labels, strict=True)
    } == truth
    assert Counter(found.images["id.train"].labels) == dict.fromkeys(range(16), TRAIN)
    sizes = {"inaturalist": 6, "sun": 5, "places": 4, "textures": 5, "ninco": 4, "imagenet_o": 7}
    assert {name: len(found.parts[f"ood/{name}"].rows) for name in sizes} == sizes
    assert {part.group for part in found.parts.values() if part.role == "ood"} == {"near", "far"}
    assert "Image set sun: 5 of 10,000 images (data.allow_partial)" in capsys.readouterr().out


def test_the_pictures_are_those_of_the_labels(tmp_path):
    found = benchmark(replica.imagenet(tmp_path), block("imagenet"))
    for name in ("id.train", "id.test"):
        images = found.images[name]
        for index, label in enumerate(images.labels):
            expected = Image.open(io.BytesIO(replica.picture(CLASSES.index(ORDER[label]))))
            np.testing.assert_array_equal(np.asarray(images.read(index)), np.asarray(expected))


def test_flat_validation_images_without_labels_are_an_error(tmp_path):
    shutil.rmtree(replica.imagenet(tmp_path) / "imagenet" / "ILSVRC2012_devkit_t12")
    with pytest.raises(ConfigError, match=r"id.test: .*val does not say which of the 1000 classes"):
        benchmark(tmp_path, block("imagenet"))


# OpenOOD


def test_openoods_lists_give_its_split_and_the_full_spectrum(tmp_path):
    found = benchmark(replica.openood(tmp_path), block("imagenet_openood"))
    parts = {part.name: (part.role, len(part.rows)) for part in found.parts.values()}
    csid = dict.fromkeys(["imagenet_v2", "imagenet_c", "imagenet_r"], ("csid", 16))
    ood = {"ssb_hard": 6, "ninco": 5, "inaturalist": 4, "textures": 3, "openimage_o": 2}
    assert parts == csid | {name: ("ood", count) for name, count in ood.items()} | {
        "bank": ("bank", 80),
        "train": ("train", 80),
        "val": ("val", 16),
        "id_test": ("id", 32),
    }
    assert found.class_names == tuple(NAMES[wnid] for wnid in ORDER)
    for name in ("id.train", "id.test"):
        images = found.images[name]
        assert [name.split("/")[2] for name in images.names] == [ORDER[label] for label in images.labels]
    v2 = found.images["csid/imagenet_v2"]
    assert [int(name.split("/")[1]) for name in v2.names] == [replica.WNIDS.index(ORDER[label]) for label in v2.labels]


def test_lists_and_folders_mix(tmp_path):
    replica.imagenet(replica.openood(tmp_path))
    for wnid in CLASSES:
        put(tmp_path / "imagenetv2-matched-frequency-format-val" / str(replica.WNIDS.index(wnid)) / "0.jpeg")
    for wnid in ORDER[3:6]:
        put(tmp_path / "imagenet-r" / wnid / "art_0.jpg")
    found = benchmark(tmp_path, block("imagenet_openood"))
    assert found.images["id.train"].root == tmp_path / "imagenet" / "train"
    v2, r = found.images["csid/imagenet_v2"], found.images["csid/imagenet_r"]
    assert {int(name.split("/")[0]): ORDER[label] for name, label in zip(v2.names, v2.labels, strict=True)} == {
        replica.WNIDS.index(wnid): wnid for wnid in CLASSES
    }
    assert r.labels == (3, 4, 5)
    assert found.images["ood/ninco"].root == tmp_path / "NINCO" / "NINCO_OOD_classes"  # the first layout that is there


def test_numbered_folders_count_as_numbers_do(tmp_path):
    for label in range(11):
        put(tmp_path / "v2" / str(label) / "0.jpeg")
    images = listed(tmp_path, folder="v2", numbered=True)
    assert {name.split("/")[0]: label for name, label in zip(images.names, images.labels, strict=True)} == {
        str(label): label for label in range(11)
    }
    put(tmp_path / "v2" / "cat" / "0.jpeg")
    with pytest.raises(ConfigError, match="must be label numbers; got 'cat'"):
        listed(tmp_path, folder="v2", numbered=True)


# TinyImageNet, CIFAR, SVHN, MNIST


def test_tinyimagenets_validation_labels_and_words(tmp_path):
    ids = {part: {"catalog": "TinyImageNet", "split": part} for part in ("train", "val")}
    id_set = {"train": ids["train"], "test": ids["val"], "class_names": "tiny-imagenet-200/words.txt"}
    found = benchmark(replica.tiny_imagenet(tmp_path), {"id": id_set}, splits={"val": 0.0})
    assert found.class_names == ("goldfish", "Egyptian cat", "reel")
    assert found.images["id.train"].labels == (0, 0, 1, 1, 2, 2)
    test = found.images["id.test"]
    assert dict(zip(test.names, test.labels, strict=True)) == {"val_0.JPEG": 1, "val_1.JPEG": 0, "val_2.JPEG": 2}


def test_svhn_and_mnist(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision import datasets

    monkeypatch.setattr(datasets.SVHN, "download", lambda self: None)
    monkeypatch.setattr(datasets.SVHN, "_check_integrity", lambda self: True)
    pixels = np.arange(32 * 32 * 3 * 4, dtype=np.uint8).reshape(32, 32, 3, 4)
    savemat(tmp_path / "test_32x32.mat", {"X": pixels, "y": np.array([[1], [10], [3], [2]])})  # 10 stands for 0
    images = listed(tmp_path, torchvision="SVHN")
    assert images.labels == (1, 0, 3, 2) and images.class_names[0] == "0"
    np.testing.assert_array_equal(np.asarray(images.read(2)), pixels[..., 2])

    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    digits = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
    for name in ("t10k", "train"):
        (raw / f"{name}-images-idx3-ubyte").write_bytes(np.array([2051, 3, 28, 28], ">i4").tobytes() + digits.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(np.array([2049, 3], ">i4").tobytes() + bytes([7, 0, 9]))
    images = listed(tmp_path, torchvision="MNIST")
    assert images.labels == (7, 0, 9) and images.class_names == tuple("0123456789")
    np.testing.assert_array_equal(np.asarray(images.read(1)), np.stack([digits[1]] * 3, axis=-1))


def test_cifar100s_names_have_spaces(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR100

    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [1, 0]}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["aquarium_fish", "pickup_truck"]}))
    monkeypatch.setattr(CIFAR100, "train_list", [("train", None)])
    monkeypatch.setattr(CIFAR100, "test_list", [("test", None)])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": None})
    assert listed(tmp_path, torchvision="CIFAR100").class_names == ("aquarium fish", "pickup truck")


# What is wrong is named


def test_a_missing_file_is_named_with_the_line_that_lists_it(tmp_path):
    replica.tiny_imagenet(replica.openood(replica.imagenet(tmp_path)))
    (tmp_path / "tiny-imagenet-200/val/images/val_1.JPEG").unlink()
    (tmp_path / "imagenet/val/ILSVRC2012_val_00000005.JPEG").unlink()
    (tmp_path / "images_largescale/ssb_hard/x/3.jpg").unlink()
    val = {"folder": "imagenet/val", "labels": "imagenet/ILSVRC2012_devkit_t12"}
    tiny = {"folder": "tiny-imagenet-200/val/images", "labels": "tiny-imagenet-200/val/val_annotations.txt"}
    ssb = {"list": "benchmark_imglist/imagenet/test_ssb_hard.txt", "images_root": "images_largescale"}
    for spec, message, left in (
        (tiny, r"val_annotations\.txt, line 2: there is no val_1 in .*images", 2),
        (val, r"validation_ground_truth\.txt, line 5: there is no ILSVRC2012_val_00000005 in .*val", 31),
        (ssb, r"test_ssb_hard\.txt, line 4: lists ssb_hard/x/3\.jpg, which is not under", 5),
    ):
        with pytest.raises(ConfigError, match=f"photos: .*{message}"):
            listed(tmp_path, partial=False, **spec)
        assert len(listed(tmp_path, **spec)) == left


@pytest.mark.parametrize(
    "path, line, text, message",
    [
        ("tiny-imagenet-200/val/val_annotations.txt", 2, "val_1.JPEG n01443537", "expected .*image<tab>class"),
        ("tiny-imagenet-200/val/val_annotations.txt", 3, "val_0.JPEG\tn01443537", "second time .first in line 1"),
        ("imagenet/LOC_val_solution.csv", 3, "ILSVRC2012_val_00000003,", 'expected .*"image,wnid box'),
        ("imagenet/LOC_val_solution.csv", 1, "Id,Labels", "expected columns ImageId"),
        ("imagenet/ILSVRC2012_devkit_t12", 4, "1001", "expected a class number of 1 … 1000, got '1001'"),
        ("imagenet/ILSVRC2012_devkit_t12", 2, "n01440764", "expected a class number"),
    ],
)
def test_a_bad_line_is_named(path, line, text, message, tmp_path):
    replica.kaggle(replica.tiny_imagenet(replica.imagenet(tmp_path)) / "imagenet" / "LOC_val_solution.csv")
    file = tmp_path / path
    file = file / "data" / "ILSVRC2012_validation_ground_truth.txt" if file.is_dir() else file
    lines = file.read_text().splitlines()
    lines[line - 1] = text
    file.write_text("\n".join(lines) + "\n")
    folder = "tiny-imagenet-200/val/images" if "tiny" in path else "imagenet/val"
    with pytest.raises(ConfigError, match=f"photos: .*{re.escape(file.name)}, line {line}: .*{message}"):
        listed(tmp_path, folder=folder, labels=path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "ImageId,PredictionString\n{},cat 1 1 9 9\n{},dog\n"),
        ("labels.txt", "{}\tcat\n{}\tdog\n"),
    ],
)
@pytest.mark.parametrize("images", [("a.b.png", "c.png"), ("a.b", "c"), ("x/a.b.png", "x/c.PNG")])
def test_labels_name_images_with_or_without_their_extension(images, name, text, tmp_path):
    for image in ("a.b.png", "c.png"):
        put(tmp_path / "photos" / image)
    (tmp_path / name).write_text(text.format(*images))
    found = listed(tmp_path, folder="photos", labels=name)
    assert [found.class_names[label] for label in found.labels] == ["cat", "dog"]


def test_a_label_that_may_be_of_two_images_is_named(tmp_path):
    for image in ("x/a.png", "y/a.png"):
        put(tmp_path / "photos" / image)
    (tmp_path / "labels.txt").write_text("a.png\tcat\n")
    with pytest.raises(ConfigError, match=r"labels\.txt, line 1: a may be x/a\.png or y/a\.png in .*take out"):
        listed(tmp_path, folder="photos", labels="labels.txt")


def test_an_image_without_a_line_and_a_damaged_devkit_are_named(tmp_path):
    replica.tiny_imagenet(replica.imagenet(tmp_path))
    put(tmp_path / "tiny-imagenet-200/val/images/extra.JPEG")
    with pytest.raises(ConfigError, match=r"val_annotations\.txt has no line for .*extra\.JPEG"):
        listed(tmp_path, folder="tiny-imagenet-200/val/images", labels="tiny-imagenet-200/val/val_annotations.txt")
    (tmp_path / "imagenet/ILSVRC2012_devkit_t12/data/meta.mat").write_bytes(b"no mat file")
    with pytest.raises(ConfigError, match=r"meta\.mat cannot be read as the devkit's"):
        listed(tmp_path, folder="imagenet/val", labels="imagenet/ILSVRC2012_devkit_t12")
