"""Small replicas of published layouts: a few generated images each, classes in an order that sorting would not give."""

from __future__ import annotations

import io
import json
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from clip_ood.config.data_schema import ImageSet
from clip_ood.data.class_names import imagenet_wnids
from clip_ood.data.image_list import ImageList
from clip_ood.data.listing import list_images

WNIDS = imagenet_wnids()
CLASSES = [WNIDS[i] for i in (7, 0, 999, 134, 517, 65, 744, 836, 2, 10, 100, 250, 388, 401, 620, 871)]  # 16
TRAIN = 5  # images a class
FLAT = {"iNaturalist/images": 6, "SUN/images": 5, "Places/images": 4, "imagenet-o/n01443537": 7}
DEEP = {"dtd/images/banded": 3, "dtd/images/dotted": 2, "NINCO/NINCO_OOD_classes/cup_o": 4}
ILSVRC = {wnid: number for number, wnid in enumerate(np.random.default_rng(0).permutation(WNIDS).tolist(), start=1)}


@cache
def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(256, size=(8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((40, 36)).save(file, "PNG")
    return file.getvalue()


def put(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(number))


def imagenet(root: Path) -> Path:
    """ImageNet's training folders, and its validation images flat beside the devkit; the paper's six OOD sets."""
    for number, wnid in enumerate(CLASSES):
        for index in range(TRAIN):
            put(root / "imagenet" / "train" / wnid / f"{wnid}_{index}.JPEG", number)
    for number, wnid in enumerate(validation(), start=1):
        put(root / "imagenet" / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", CLASSES.index(wnid))
    devkit(root / "imagenet" / "ILSVRC2012_devkit_t12", [ILSVRC[wnid] for wnid in validation()])
    for number, (folder, count) in enumerate((FLAT | DEEP).items()):
        for index in range(count):
            put(root / folder / f"{index}.jpg", 100 + 10 * number + index)
    return root


def validation() -> list[str]:
    """The wnid of each validation image, in their order: two of each class, mixed."""
    return [CLASSES[index] for index in np.random.default_rng(1).permutation(2 * len(CLASSES)) % len(CLASSES)]


def devkit(folder: Path, truth: list[int]) -> None:
    """The devkit's two files: a thousand classes in its own numbering among synsets that have children."""
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    synsets = np.zeros((1002, 1), fields)
    leaves = sorted((number, wnid, 0) for wnid, number in ILSVRC.items())
    for row, (number, wnid, children) in enumerate([*leaves, (1001, "n00001740", 3), (1002, "n00001930", 2)]):
        synsets[row, 0] = (np.array([[float(number)]]), wnid, "words", "gloss", np.array([[float(children)]]))
    (folder / "data").mkdir(parents=True)
    savemat(folder / "data" / "meta.mat", {"synsets": synsets})
    (folder / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{n}\n" for n in truth))


def kaggle(path: Path) -> None:
    """The same truth as Kaggle tells it, in another order and with boxes."""
    rows = [f"ILSVRC2012_val_{n:08d},{wnid} 1 2 3 4 {wnid} 5 6 7 8 " for n, wnid in enumerate(validation(), start=1)]
    path.write_text("\n".join(["ImageId,PredictionString", *rows[::-1]]) + "\n")


def tiny_imagenet(root: Path) -> Path:
    """Three classes with two training and one validation image each."""
    top, classes = root / "tiny-imagenet-200", ["n02124075", "n01443537", "n04067472"]
    for number, wnid in enumerate(classes):
        for index in range(2):
            put(top / "train" / wnid / "images" / f"{wnid}_{index}.JPEG", number)
        (top / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
        put(top / "val" / "images" / f"val_{number}.JPEG", number)
    lines = [f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n" for number, wnid in enumerate(classes)]
    (top / "val" / "val_annotations.txt").write_text("".join(lines))
    (top / "words.txt").write_text(
        "n02124075\tEgyptian cat\nn01443537\tgoldfish, Carassius auratus\nn04067472\treel\nn09\tother\n"
    )
    return root


def openood(root: Path) -> Path:
    """OpenOOD's data folder: image lists, and images below images_largescale/ and images_classic/."""
    labels = {wnid: WNIDS.index(wnid) for wnid in CLASSES}
    lists = {"train_imagenet": [], "val_imagenet": [], "test_imagenet": []}
    for number, (wnid, label) in enumerate(labels.items()):
        for name, folder, count in (("train", "train", TRAIN), ("val", "val", 1), ("test", "val", 2)):
            lists[f"{name}_imagenet"] += [(f"imagenet_1k/{folder}/{wnid}/{name}_{i}.JPEG", label) for i in range(count)]
        for name in ("imagenet_v2", "imagenet_c", "imagenet_r"):
            lists.setdefault(f"test_{name}", []).append((f"{name}/{label}/{number}.jpeg", label))
    for name, count in (("ssb_hard", 6), ("ninco", 5), ("inaturalist", 4), ("textures", 3), ("openimage_o", 2)):
        lists[f"test_{name}"] = [(f"{name}/x/{index}.jpg", -1) for index in range(count)]
    for name, lines in lists.items():
        images = root / ("images_classic" if name == "test_textures" else "images_largescale")
        for place, label in lines:
            put(images / place, label % 50)
        path = root / "benchmark_imglist" / "imagenet" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{place} {label}\n" for place, label in lines))
    return root


def shards(folder: Path, labels: list[int] | None, a_shard: int = 4) -> Path:
    """Tar shards photos-000.tar, … of images and, with `labels`, their labels; other files lie between them."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(labels or range(10))
    for start in range(0, count, a_shard):
        with tarfile.open(folder / f"photos-{start // a_shard:03d}.tar", "w") as tar:
            for index in range(start, min(start + a_shard, count)):
                files = {"json": json.dumps({"of": index}).encode(), "png": picture(index)}
                if labels is not None:
                    files["cls"] = str(labels[index]).encode()
                for suffix, content in files.items():
                    info = tarfile.TarInfo(f"{index:05d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


def listed(root: Path, labelled: bool = True, **spec) -> ImageList:
    """An image set as a config describes it."""
    return list_images("x", ImageSet(**spec), root, labelled, 0)
