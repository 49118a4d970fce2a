"""A set of images as a list: folders, OpenOOD-style lists, tar shards and torchvision's arrays all become one."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unicodedata import normalize

import numpy as np
from PIL import Image

from clip_ood.features.identity import SIZE, identity_of, pairs
from clip_ood.reading import SUFFIXES, decode
from clip_ood.text_files import not_utf8, read_names
from configs.checks import shard_paths
from configs.errors import ConfigError
from configs.misnamed import tars_in
from configs.schema import ImageSet
from datamodules import shards, torchvision_sets
from datamodules.class_order import check_no_splits, in_order, is_number
from datamodules.corruptions import Corruption
from datamodules.hidden import is_hidden
from datamodules.label_files import read_labels
from datamodules.sources import hides_changes, of_pixels, read_whole, real_folder, real_path, stamp


@dataclass(frozen=True)
class Loaded:
    """An image as it was read: what tells it, what its file holds and what tells that file (None in memory), and the picture on
    demand."""

    identity: bytes
    content: bytes | None
    stamp: bytes | None
    picture: Callable[[], Image.Image]


@dataclass(frozen=True)
class ImageList:
    """N images, in a fixed order.

    Attributes: names, the paths relative to `root`; labels, a class index each (-1: none), None for a flat folder;
    class_names, in label order where folders name them; pixels or members, of images that are no files of their own;
    corruption, what is done to each after decoding.
    """

    name: str
    root: Path
    names: tuple[str, ...]
    labels: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None
    pixels: Sequence | None = None
    members: tuple[shards.Member, ...] | None = None
    corruption: Corruption | None = None

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Image.Image:
        """The image as 8-bit RGB; raises what reading raises."""
        if self.pixels is not None:
            return self._corrupted(index, _of_array(self.pixels[index]))
        path, inside = self._place(index)
        return self._picture(index, read_whole(path, *inside)[0])

    def load(self, index: int) -> Loaded:
        """The image, not decoded yet. Raises: OSError for a file that cannot be had."""
        if self.pixels is not None:
            pixels = self.pixels[index]
            return Loaded(self._after_corruption(index, of_pixels(pixels)), None, None, lambda: self.read(index))
        path, inside = self._place(index)
        read, state = read_whole(path, *inside)
        content = identity_of(read)
        known_by = stamp(real_path(str(path)), state, *inside)
        return Loaded(self._after_corruption(index, content), content, known_by, lambda: self._picture(index, read))

    def _place(self, index: int) -> tuple[Path, tuple[int, ...]]:
        """The file that an image lies in, and where in it: offset and size, nothing for the whole file."""
        if self.members is None:
            return self.root / self.names[index], ()
        member = self.members[index]
        return self.root / member.shard, (member.offset, member.size)

    def content(self, row: int) -> bytes:
        """What tells the content of an image's file, which is read: 16 bytes."""
        path, inside = self._place(row)
        return identity_of(read_whole(path, *inside)[0])

    def identities(self) -> np.ndarray | None:
        """What tells images in memory apart, (N, 2); None for files, which must be read first."""
        if self.pixels is None:
            return None
        return self.derived(pairs([of_pixels(pixels) for pixels in self.pixels]))

    def derived(self, contents: np.ndarray) -> np.ndarray:
        """What tells the images apart, (N, 2), of what tells their sources: the same but for corrupted images."""
        if self.corruption is None:
            return contents
        sources = contents.astype("<u8").tobytes()
        return pairs(
            [self._after_corruption(row, sources[row * SIZE : (row + 1) * SIZE]) for row in range(len(self.names))]
        )

    def stamps(self, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Of these rows (None: all): what each image's file is known by, (n, 2), and whether a change of it could go unnoticed,
        (n,) bool.

        Raises: ConfigError for a file that is not there.
        """
        real_folder.cache_clear()  # links may lead elsewhere by now
        states: dict[str, os.stat_result] = {}
        root, vague, found = str(self.root), [], []
        try:
            for row in range(len(self.names)) if rows is None else rows.tolist():
                if self.members is None:
                    path, inside = os.path.join(root, self.names[row]), ()
                    state = os.stat(path)
                else:
                    member = self.members[row]
                    path, inside = os.path.join(root, member.shard), (member.offset, member.size)
                    state = states.get(path) or states.setdefault(path, os.stat(path))
                vague.append(hides_changes(state))
                found.append(stamp(real_path(path), state, *inside))
        except OSError as error:
            raise ConfigError(f"Image set {self.name}: {error.filename} cannot be had ({error.strerror})") from error
        return pairs(found), np.array(vague, bool)

    def _after_corruption(self, index: int, identity: bytes) -> bytes:
        """The identity of an image after its corruption, whose noise is drawn by the image's name."""
        if self.corruption is None:
            return identity
        return identity_of(identity, *map(str, self.corruption.key), self.names[index])

    def _picture(self, index: int, content: bytes) -> Image.Image:
        return self._corrupted(index, decode(io.BytesIO(content)))

    def _corrupted(self, index: int, image: Image.Image) -> Image.Image:
        return image if self.corruption is None else self.corruption(image, self.names[index])

    def subset(self, keep: Sequence[int]) -> ImageList:
        """The images at the positions `keep`, in that order."""
        labels = None if self.labels is None else tuple(self.labels[i] for i in keep)
        pixels = None if self.pixels is None else self.pixels[list(keep)]
        members = None if self.members is None else tuple(self.members[i] for i in keep)
        return replace(self, names=tuple(self.names[i] for i in keep), labels=labels, pixels=pixels, members=members)


def list_images(
    name: str, spec: ImageSet, root: Path, labelled: bool, seed: int, partial: bool = False, download: bool = True
) -> ImageList:
    """The images of a set; with `labelled`, class folders and list labels become labels.

    `partial` takes what is there of a set whose number is known; `download` lets torchvision fetch what is missing.
    Raises: ConfigError for an empty set, another number than the set must have, an empty class folder, images beside
    class folders, a folder that cannot be read, and wrong lines of a list.
    """
    where = _place(spec, root)
    if spec.torchvision is not None:
        images = _from_torchvision(name, spec, root, download)
    elif spec.shards is not None:
        found = shards.index(name, shard_paths(where))
        if found.passed_over:
            _say_passed_over(name, list(found.passed_over))
        images = ImageList(name, where.parent, found.names, found.labels, members=found.members)
    elif spec.list is not None:
        images = _from_list(name, where, root / spec.images_root, partial)
    elif spec.labels is not None:
        images = _from_labels(name, where, root / spec.labels, partial)
    else:
        images = _from_folder(name, where, labelled)
        if images.class_names is not None:
            check_no_splits(name, spec.folder, images)
        if spec.numbered and images.class_names is not None:
            images = _by_number(images)
    if not len(images):
        hint = tars_in(where) if spec.folder is not None else ""
        raise ConfigError(
            f"Image set {name}: {where} holds no images (looked for {', '.join(sorted(SUFFIXES))}).{hint}"
        )
    _check_count(images, spec, where, labelled, partial)
    if spec.per_class is not None:
        if images.labels is None:
            raise ConfigError(f"Image set {name}: per_class needs classes, and {where} has none")
        images = images.subset(balanced(images, spec.per_class, seed))
    return images


def _place(spec: ImageSet, root: Path) -> Path:
    return root / (spec.folder or spec.list or spec.shards or "")


def _check_count(images: ImageList, spec: ImageSet, where: Path, labelled: bool, partial: bool) -> None:
    """Raises ConfigError for a number of images or classes that is not the one the set must have."""
    way_out = "Complete it, or run on what is there with --data.allow_partial=true"
    if spec.count is not None and len(images) != spec.count and not (partial and len(images) < spec.count):
        raise ConfigError(
            f"Image set {images.name}: {where} holds {len(images):,} images, and the set has {spec.count:,}. {way_out}"
        )
    if not labelled or spec.classes is None:
        return
    if images.labels is None:
        raise ConfigError(
            f"Image set {images.name}: {where} does not say which of the {spec.classes} classes an image belongs to: move "
            "the images into a folder a class, or name a file of labels (data.….labels)"
        )
    found = len(set(images.labels) - {-1})
    if found != spec.classes and not (partial and found < spec.classes):
        raise ConfigError(
            f"Image set {images.name}: {where} holds {found} classes, and the set has {spec.classes}. {way_out}"
        )


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
    return hashlib.blake2b(f"{seed}:{name}".encode("utf-8", "surrogateescape"), digest_size=8).digest()


def _from_folder(name: str, folder: Path, labelled: bool) -> ImageList:
    files = sorted(_walk(name, folder))
    names = tuple(file for file in files if Path(file).suffix.lower() in SUFFIXES)
    if len(names) < len(files):
        _say_passed_over(name, sorted(set(files).difference(names)))
    if not labelled:
        return ImageList(name, folder, names)
    classes = [entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name)]
    if not classes:
        return ImageList(name, folder, names)
    if wrong := next(filter(not_utf8, classes), None):
        raise ConfigError(f"Image set {name}: the name of the class folder {folder / wrong} is not UTF-8. Rename it.")
    classes = in_order(classes)
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
        entries = [entry for entry in os.scandir(folder) if not is_hidden(entry.name)]
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


def _by_number(images: ImageList) -> ImageList:
    """The folders' names as the labels themselves."""
    wrong = next((label for label in images.class_names if not is_number(label)), None)
    if wrong is not None:
        raise ConfigError(
            f"Image set {images.name}: the class folders of {images.root} must be label numbers; got {wrong!r}"
        )
    labels = tuple(int(images.class_names[label]) for label in images.labels)
    return replace(images, labels=labels, class_names=None)


def _from_labels(name: str, folder: Path, path: Path, partial: bool) -> ImageList:
    """Images of a folder, in whatever folders below, with the classes that a file gives them."""
    images = _from_folder(name, folder, labelled=False)
    path, labels = read_labels(name, path)
    labels = {normalize("NFC", stem): label for stem, label in labels.items()}
    stems = [normalize("NFC", Path(image).stem) for image in images.names]
    if unknown := next((image for image, stem in zip(images.names, stems, strict=True) if stem not in labels), None):
        raise ConfigError(f"Image set {name}: {path} has no line for {folder / unknown}")
    if (missing := labels.keys() - set(stems)) and not partial:
        missing = min(missing, key=lambda stem: labels[stem].line)
        raise ConfigError(f"Image set {name}: {path}, line {labels[missing].line}: there is no {missing} in {folder}")
    classes = in_order({labels[stem].name for stem in stems})
    number = {label: index for index, label in enumerate(classes)}
    return replace(images, labels=tuple(number[labels[stem].name] for stem in stems), class_names=tuple(classes))


def _from_list(name: str, path: Path, root: Path, partial: bool) -> ImageList:
    lines: dict[str, int] = {}
    names, labels = [], []
    for number, line in enumerate(read_names(path), start=1):
        if not line.strip():
            continue
        found = re.fullmatch(r"\s*(\S.*?)\s+(-?\d+)\s*", line)
        if found is None:
            raise ConfigError(f'Image set {name}: {path}, line {number}: expected "relative/path label", got {line!r}')
        if found[1] in lines:
            raise ConfigError(
                f"Image set {name}: {path}, line {number}: lists {found[1]} more than once (first in line {lines[found[1]]})"
            )
        lines[found[1]] = number
        if (image := _as_it_is_written(root, found[1])) is None:
            if partial:
                continue
            way_out = "; write / between folders, not \\" if "\\" in found[1] else " (key images_root)"
            encoding = ". The name is not UTF-8: save the list as UTF-8" if not_utf8(found[1]) else ""
            raise ConfigError(
                f"Image set {name}: {path}, line {number}: lists {found[1]}, which is not under {root}{way_out}{encoding}"
            )
        names.append(image)
        labels.append(max(int(found[2]), -1))
    return ImageList(name, root, tuple(names), tuple(labels) if any(label >= 0 for label in labels) else None)


def _as_it_is_written(root: Path, image: str) -> str | None:
    """An image's path in the Unicode form that its file has: Macs write é as two characters, others as one. None without a file."""
    forms = (image, normalize("NFC", image), normalize("NFD", image))
    return next((form for form in forms if (root / form).is_file()), None)


def _from_torchvision(name: str, spec: ImageSet, root: Path, download: bool) -> ImageList:
    split = spec.split or "test"
    data = torchvision_sets.load(name, spec.torchvision, split, root, download)
    names = tuple(f"{spec.torchvision}/{split}/{index:05d}" for index in range(len(data.labels)))
    return ImageList(name, root, names, data.labels, data.class_names, data.pixels)


def _of_array(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels).convert("RGB")
