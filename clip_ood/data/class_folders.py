"""Lists the images of a folder, whose sub-folders may be classes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from clip_ood.data.archive_tree import Tree, in_archive
from clip_ood.data.bucket_tree import in_bucket
from clip_ood.data.class_order import in_order, is_number
from clip_ood.data.image_list import ImageList
from clip_ood.data.readers.files import Files
from clip_ood.errors import ConfigError
from clip_ood.files.archive_names import archive_of
from clip_ood.files.hidden import is_hidden
from clip_ood.files.pictures import SUFFIXES
from clip_ood.files.regular_file import special
from clip_ood.files.remote.address import Address
from clip_ood.files.text_files import not_utf8
from clip_ood.process.ranks import say_once
from clip_ood.process.stalls import reading


def from_folder(name: str, folder: Path | Address, labelled: bool) -> ImageList:
    """Returns the images of a folder and below it; with `labelled`, its sub-folders, if it has some, are their classes.

    An archive, or a folder in one (photos.zip/train), is taken as the folder that it would be unpacked to, and so is what lies at an
    address.

    Raises: ConfigError for images beside class folders, an empty class folder, one whose name is not UTF-8, a folder that cannot be
    read, a link that leads back, and an archive that is not whole or holds an image that cannot be read in place.
    """
    found = tree_of(name, folder)
    names = tuple(file for file in found.files if Path(file).suffix.lower() in SUFFIXES)
    if len(names) < len(found.files):
        say_passed_over(name, sorted(set(found.files).difference(names)))
    if not (labelled and found.folders):
        return ImageList.of(name, folder, found.reader(names))
    if wrong := next(filter(not_utf8, found.folders), None):
        raise ConfigError(f"Image set {name}: the name of the class folder {folder / wrong} is not UTF-8. Rename it.")
    classes = in_order(found.folders)
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
    return ImageList.of(name, folder, found.reader(names, tuple(number[top] for top in first), readable))


def tree_of(name: str, folder: Path | Address) -> Tree:
    """Lists a folder, an archive, or what lies at an address. Raises: ConfigError as `from_folder` does."""
    if (archive := archive_of(folder)) is not None:
        return in_archive(name, *archive)
    return in_bucket(name, folder) if isinstance(folder, Address) else _on_disk(name, folder)


def _on_disk(name: str, folder: Path) -> Tree:
    files = sorted(_walk(name, folder))
    folders = [entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name)]
    return Tree(files, folders, partial(Files, folder))


def by_number(images: ImageList) -> ImageList:
    """Returns the images with their folders' names as labels."""
    wrong = next((label for label in images.class_names if not is_number(label)), None)
    if wrong is not None:
        raise ConfigError(
            f"Image set {images.name}: the class folders of {images.root} must be label numbers; got {wrong!r}"
        )
    labels = tuple(int(images.class_names[label]) for label in images.labels)
    return replace(images, labels=labels, class_names=None)


def _walk(name: str, folder: Path, inside: str = "", above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yields relative paths of the files in a folder and below it; links are followed, hidden files are left out."""
    here = os.path.realpath(folder)
    if here in above:
        raise ConfigError(f"Image set {name}: the link {folder} leads back to {here}, which it lies in. Remove it.")
    try:
        with reading(folder):
            entries = [entry for entry in os.scandir(folder) if not is_hidden(entry.name)]
    except OSError as error:
        raise ConfigError(f"Image set {name}: the folder {folder} cannot be read ({error.strerror})") from error
    for entry in entries:
        if _is(entry.is_dir):
            yield from _walk(name, Path(entry.path), f"{inside}{entry.name}/", above | {here})
            continue
        if Path(entry.name).suffix.lower() in SUFFIXES and not _is(entry.is_file):
            kind = special(entry.path)
            told = "leads nowhere" if kind is None else f"is {kind}, and no file"
            raise ConfigError(f"Image set {name}: {entry.path} {told}. Remove it.")
        yield inside + entry.name


def _is(kind: Callable[[], bool]) -> bool:
    """Says whether an entry is of a kind; a link that leads to itself is of none."""
    try:
        return kind()
    except OSError:
        return False


def say_passed_over(name: str, files: list[str]) -> None:
    """Says that files of a set are not read, since their names do not end as those of images do."""
    are = "files are" if len(files) > 1 else "file is"
    say_once(f"Image set {name}: {len(files)} {are} passed over for want of an image extension ({files[0]})")
