"""A set of images as a list: folders, OpenOOD-style lists and torchvision's CIFAR all become one."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from configs.errors import ConfigError
from configs.schema import ImageSet
from datamodules.reading import SUFFIXES, read_image


@dataclass(frozen=True)
class ImageList:
    """N images, in a fixed order.

    Attributes: names, the paths relative to `root`; labels, a class index each (-1: none), None for a flat folder;
    class_names, in label order where folders name them; files, (name, size, mtime) each: what the store keys on.
    """

    name: str
    root: Path
    names: tuple[str, ...]
    labels: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None
    pixels: Sequence | None = None

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Image.Image:
        """The image as 8-bit RGB; raises what reading raises."""
        if self.pixels is not None:
            return Image.fromarray(self.pixels[index])
        return read_image(self.root / self.names[index])

    @property
    def files(self) -> list[tuple]:
        if self.pixels is not None:
            return [(name,) for name in self.names]
        try:
            return [(name, *_size_and_time(self.root / name)) for name in self.names]
        except OSError as error:
            raise ConfigError(f"Image set {self.name}: there is no {error.filename} ({error.strerror})") from error

    def subset(self, keep: Sequence[int]) -> ImageList:
        """The images at the positions `keep`, in that order."""
        labels = None if self.labels is None else tuple(self.labels[i] for i in keep)
        pixels = None if self.pixels is None else self.pixels[list(keep)]
        return replace(self, names=tuple(self.names[i] for i in keep), labels=labels, pixels=pixels)


def list_images(name: str, spec: ImageSet, root: Path, labelled: bool, seed: int) -> ImageList:
    """The images of a set; with `labelled`, class folders and list labels become labels.

    Raises: ConfigError for an empty set, an empty class folder, images beside class folders, a folder that cannot be
    read, and wrong lines of a list.
    """
    if spec.torchvision is not None:
        images = _cifar(name, spec, root)
    elif spec.list is not None:
        images = _from_list(name, root / spec.list, root / spec.images_root)
    else:
        images = _from_folder(name, root / spec.folder, labelled)
    if not len(images):
        where = root / (spec.folder or spec.list)
        raise ConfigError(f"Image set {name}: {where} holds no images (looked for {', '.join(sorted(SUFFIXES))})")
    if spec.per_class is not None:
        if images.labels is None:
            raise ConfigError(
                f"Image set {name}: per_class needs classes, and {root / (spec.folder or spec.list)} has none"
            )
        images = images.subset(balanced(images, spec.per_class, seed))
    return images


def balanced(images: ImageList, per_class: int, seed: int) -> list[int]:
    """Positions of a seeded draw of `per_class` images a class (all of a class that has fewer), in order."""
    taken: dict[int, int] = {}
    keep = []
    for index in sorted(range(len(images)), key=lambda i: lot(seed, images.names[i])):
        label = images.labels[index]
        if taken.get(label, 0) < per_class:
            taken[label] = taken.get(label, 0) + 1
            keep.append(index)
    return sorted(keep)


def lot(seed: int, name: str) -> bytes:
    """The lot that an image draws: sorting by it is a seeded shuffle that new images don't upset."""
    return hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()


def _from_folder(name: str, folder: Path, labelled: bool) -> ImageList:
    files = sorted(_walk(name, folder))
    names = tuple(file for file in files if Path(file).suffix.lower() in SUFFIXES)
    if len(names) < len(files):
        _say_passed_over(name, sorted(set(files).difference(names)))
    if not labelled:
        return ImageList(name, folder, names)
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        return ImageList(name, folder, names)
    first = [path.split("/", 1)[0] if "/" in path else "" for path in names]
    if loose := [path for path, top in zip(names, first, strict=True) if not top]:
        raise ConfigError(
            f"Image set {name}: {folder} holds class folders and also {len(loose)} images beside them ({loose[0]}). "
            "Move them into a class, or all images into one flat folder."
        )
    if empty := sorted(set(classes) - set(first)):
        raise ConfigError(f"Image set {name}: the class folder {folder / empty[0]} holds no images. Fill or remove it.")
    number = {label: index for index, label in enumerate(classes)}
    readable = tuple(label.replace("_", " ") for label in classes)
    return ImageList(name, folder, names, tuple(number[top] for top in first), readable)


def _walk(name: str, folder: Path, inside: str = "", above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Relative paths of the files in a folder and in those below, links followed, hidden ones left out."""
    here = os.path.realpath(folder)
    if here in above:
        raise ConfigError(f"Image set {name}: the link {folder} leads back to {here}, which it lies in. Remove it.")
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise ConfigError(f"Image set {name}: the folder {folder} cannot be read ({error.strerror})") from error
    for entry in entries:
        if entry.is_dir():
            yield from _walk(name, Path(entry.path), f"{inside}{entry.name}/", above | {here})
        else:
            yield inside + entry.name


def _say_passed_over(name: str, files: list[str]) -> None:
    from lightning.pytorch.utilities import rank_zero_only

    are = "files are" if len(files) > 1 else "file is"
    rank_zero_only(print)(
        f"Image set {name}: {len(files)} {are} passed over for want of an image extension ({files[0]})"
    )


def _from_list(name: str, path: Path, root: Path) -> ImageList:
    names, labels = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        found = re.fullmatch(r"\s*(\S.*?)\s+(-?\d+)\s*", line)
        if found is None:
            raise ConfigError(f'Image set {name}: {path}, line {number}: expected "relative/path label", got {line!r}')
        names.append(found[1])
        labels.append(max(int(found[2]), -1))
    if missing := next((image for image in names if not (root / image).is_file()), None):
        raise ConfigError(f"Image set {name}: {path} lists {missing}, which is not under {root} (key images_root)")
    if twice := next((image for image, count in Counter(names).items() if count > 1), None):
        raise ConfigError(f"Image set {name}: {path} lists {twice} more than once")
    return ImageList(name, root, tuple(names), tuple(labels) if any(label >= 0 for label in labels) else None)


def _cifar(name: str, spec: ImageSet, root: Path) -> ImageList:
    from filelock import FileLock
    from torchvision import datasets

    train = spec.split == "train"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{spec.torchvision}.lock"):  # processes of one run would all download
            data = getattr(datasets, spec.torchvision)(root, train=train, download=True)
    except Exception as error:
        raise ConfigError(
            f"Image set {name}: torchvision could not download {spec.torchvision} (170 MB) to {root}: {error}"
        ) from error
    names = tuple(f"{spec.torchvision}/{spec.split}/{index:05d}" for index in range(len(data)))
    classes = tuple(label.replace("_", " ") for label in data.classes)
    return ImageList(name, root, names, tuple(data.targets), classes, data.data)


def _size_and_time(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
