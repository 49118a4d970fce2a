"""Replicas of the published layouts of the benchmarks that are parts of other sets: lists, halves, indices, nested folders."""

from __future__ import annotations

from pathlib import Path

from replica import WNIDS, put

from clip_ood.config.class_lists import classes_of

ORDER = ("knowns", "easy", "hard", "others")


def names(of: str, count: int = 3) -> list[str]:
    """The first classes of a published list."""
    return list(classes_of(Path(of), Path(), of)[:count])


def cifar(root: Path, k: str) -> Path:
    """OpenOOD's lists and images of a CIFAR: near and far sets, and its division of the test images."""
    near, own = ("cifar100", "cifar10")[:: 1 if k == "cifar10" else -1]
    known = names(k, 10)
    lines = {
        f"train_{k}": [
            (f"{k}/train/{name}/{index}.png", label) for label, name in enumerate(known) for index in range(3)
        ],
        f"val_{k}": [(f"{k}/test/{name}/0.png", label) for label, name in enumerate(known)],
        f"test_{k}": [(f"{k}/test/{name}/{index}.png", label) for label, name in enumerate(known) for index in (1, 2)],
    }
    assert own == k
    sets = {near: 6, "tin": 5, "mnist": 4, "svhn": 3, "texture": 2, "places365": 7}
    lines |= {f"test_{name}": [(f"{name}/x/{index}.png", -1) for index in range(count)] for name, count in sets.items()}
    for name, rows in lines.items():
        shared = name.removeprefix("test_") in ("mnist", "svhn", "texture")
        _list(root, "cifar10" if shared else k, name, rows, "images_classic")
    return root


def imagenet200(root: Path) -> Path:
    """OpenOOD's lists of ImageNet-200, whose labels count through its own 200 classes, and its OOD sets."""
    known = names("openood_imagenet200", 200)
    some = [(label, known[label]) for label in (0, 7, 132, 199)]
    lists = {
        "train_imagenet200": [(f"imagenet_1k/train/{wnid}/{i}.JPEG", label) for label, wnid in some for i in range(3)],
        "val_imagenet200": [(f"imagenet_1k/val/val_{label}.JPEG", label) for label, _ in some],
        "test_imagenet200": [(f"imagenet_1k/val/test_{label}_{i}.JPEG", label) for label, _ in some for i in range(2)],
        "test_imagenet200_v2": [(f"imagenet_v2/{WNIDS.index(wnid)}/a.jpeg", label) for label, wnid in some],
        "test_imagenet200_c": [(f"imagenet_c/fog/1/{label}.JPEG", label) for label, _ in some],
        "test_imagenet200_r": [(f"imagenet_r/{wnid}/art.jpg", label) for label, wnid in some],
    }
    for name, rows in lists.items():
        _list(root, "imagenet200", name, rows, "images_largescale")
    return root


def _list(root: Path, folder: str, name: str, rows: list[tuple[str, int]], images: str) -> None:
    for number, (place, _) in enumerate(rows):
        put(root / images / place, 1000 + 10 * len(name) + number)
    path = root / "benchmark_imglist" / folder / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{place} {label}\n" for place, label in rows))


def imagenet_classes(root: Path, wnids: list[str]) -> Path:
    """ImageNet's folders with some classes more: four training and two validation images of each."""
    for number, wnid in enumerate(wnids):
        for index in range(4):
            put(root / "imagenet" / "train" / wnid / f"{wnid}_{index}.JPEG", 2000 + number)
        for index in range(2):
            put(root / "imagenet" / "val" / wnid / f"val_{wnid}_{index}.JPEG", 2000 + number)
    return root


def ninco_clean(root: Path) -> Path:
    folders = "Places iNaturalist_OOD_Plants Textures OpenImage_O ImageNet_O SSB_hard SSB_easy Species COOD ImageNet_1k_OOD_400_ood"
    for number, folder in enumerate([*folders.split(), "360OpenSet"], start=1):
        for index in range(number):
            put(
                root / "NINCO" / "NINCO_popular_datasets_subsamples" / folder / f"{index}.jpg",
                3000 + 20 * number + index,
            )
    return root


def imagenet_ood(root: Path) -> Path:
    """ImageNet-OOD: ImageNet-21K's folders, and a list of paths alone."""
    images = [f"n0292500{number}/n0292500{number}_{index}.JPEG" for number in range(2) for index in range(3)]
    for number, image in enumerate(images):
        put(root / "imagenet21k" / image, 4000 + number)
    put(root / "imagenet21k" / "n02925000" / "not_listed.JPEG", 4999)
    (root / "imagenetood").mkdir(parents=True)
    (root / "imagenetood" / "imagenetood.txt").write_text("".join(f"{image}\n" for image in images))
    return root


def shifted(root: Path, wnids: list[str]) -> Path:
    """Sketch and A, a folder a wnid; ES, whose class folders lie below those of the light and of the camera's setting."""
    for number, wnid in enumerate(wnids):
        put(root / "sketch" / wnid / "sketch_0.JPEG", 5000 + number)
        for setting in ("param_control/l1/param_1", "param_control/l5/param_27", "auto_exposure/l1/param_1"):
            put(root / "ImageNet-ES" / "es-test" / setting / wnid / "0.JPEG", 5100 + 10 * number + len(setting))
    for wnid in wnids[:2]:
        put(root / "imagenet-a" / wnid / "0.01_a.jpg", 5200)
    return root


def cub(root: Path, known: dict[str, list[str]]) -> Path:
    """CUB's archive: numbered class folders, and three files that number the images, divide them and name their classes."""
    top, images, parts = root / "CUB_200_2011", [], []
    classes = [name.replace(" ", "_") for group in known.values() for name in group]
    for number, name in enumerate(classes, start=1):
        for index in range(4):
            image = f"{number:03d}.{name}/{name}_{index}.jpg"
            put(top / "images" / image, 6000 + 4 * number + index)
            images.append(image)
            parts.append(int(index < 2))
    top.joinpath("images.txt").write_text("".join(f"{n} {image}\n" for n, image in enumerate(images, start=1)))
    top.joinpath("train_test_split.txt").write_text("".join(f"{n} {part}\n" for n, part in enumerate(parts, start=1)))
    return root


def cars(root: Path, known: dict[str, list[str]]) -> Path:
    for number, name in enumerate(name for group in known.values() for name in group):
        for part in ("train", "test"):
            for index in range(2):
                folder = root / "Stanford_Cars" / "car_data" / "car_data" / part / name
                put(folder / f"{part}{number}{index}.jpg", 6500 + 4 * number + index)
    return root


def aircraft(root: Path, known: dict[str, list[str]]) -> Path:
    data = root / "fgvc-aircraft-2013b" / "data"
    _indexed(
        data / "images",
        {"trainval": data / "images_variant_trainval.txt", "test": data / "images_variant_test.txt"},
        known,
        lambda name, number: (f"{number:07d}", f"{number:07d} {name}"),
    )
    return root


def food(root: Path, known: dict[str, list[str]]) -> Path:
    top = root / "food-101"
    _indexed(
        top / "images",
        {"train": top / "meta" / "train.txt", "test": top / "meta" / "test.txt"},
        known,
        lambda name, number: (f"{name.replace(' ', '_')}/{number}",) * 2,
    )
    return root


def pets(root: Path, known: dict[str, list[str]]) -> Path:
    top = root / "oxford-iiit-pet"
    files = {"trainval": top / "annotations" / "trainval.txt", "test": top / "annotations" / "test.txt"}
    _indexed(
        top / "images",
        files,
        known,
        lambda name, number: (pet := f"{name.lower().replace(' ', '_')}_{number}", f"{pet} 1 2 3"),
    )
    return root


def _indexed(folder: Path, files: dict[str, Path], known: dict[str, list[str]], written) -> None:
    number, lines = 0, {part: [] for part in files}
    for name in (name for group in known.values() for name in group):
        for part in files:
            for _ in range(2):
                number += 1
                image, line = written(name, number)
                put(folder / f"{image}.jpg", 7000 + number)
                lines[part].append(line)
    for part, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines[part]))


def waterbirds(root: Path) -> Path:
    """WaterBirds' table of all images, with the backgrounds of the benchmark's OOD images beside it."""
    top, rows = root / "waterbird_complete95_forest2water2", ["img_id,img_filename,y,split,place,place_filename"]
    for number in range(18):
        image = f"{number:03d}.Some_Bird/Some_Bird_{number}.jpg"
        put(top / image, 8000 + number)
        rows.append(f"{number},{image},{number % 2},{number // 6},{number % 2},/o/ocean/{number}.jpg")
    (top / "metadata.csv").write_text("\n".join(rows) + "\n")
    for index in range(5):
        put(root / "placesbg" / ("land", "water")[index % 2] / f"{index}.jpg", 8100 + index)
        put(root / "dtd" / "images" / "banded" / f"{index}.jpg", 8200 + index)
    return root
