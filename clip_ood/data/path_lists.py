"""Lists the images that a text file names by their paths, as OpenOOD's lists do."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from posixpath import normpath
from unicodedata import normalize

from clip_ood.data.class_folders import tree_of
from clip_ood.data.comparability import of_count, of_list
from clip_ood.data.image_list import ImageList
from clip_ood.data.readers.files import Files
from clip_ood.errors import ConfigError, shortened
from clip_ood.files.archive_names import archive_of
from clip_ood.files.pictures import SUFFIXES
from clip_ood.files.remote.address import Address
from clip_ood.files.text_files import not_utf8, read_names
from clip_ood.naming import forms
from clip_ood.process.ranks import say_once


def from_list(name: str, path: Path, root: Path | Address, partial: bool, count: int | None) -> ImageList:
    """Returns the images that a text file lists by their paths below `root`, a folder, an archive or an address, with label numbers if it
    has them.

    Raises: ConfigError for a line of another form, a path that stands there twice, and, unless `partial`, for images that are not there
    and for another number of lines than `count`.
    """
    lines: dict[str, int] = {}
    names, labels, missing = [], [], []
    paths_alone = None
    packed = tree_of(name, root) if isinstance(root, Address) or archive_of(root) is not None else None
    members = None if packed is None else frozenset(packed.files)
    for number, line in enumerate(read_names(path), start=1):
        if not line.strip():
            continue
        found = line.rsplit(maxsplit=1)
        if paths_alone is None:  # as the first line is, so are all
            paths_alone = Path(line.strip()).suffix.lower() in SUFFIXES
        if paths_alone and Path(line.strip()).suffix.lower() in SUFFIXES:
            found = [line, "-1"]
        elif len(found) < 2 or re.fullmatch(r"-?\d{1,18}", found[1]) is None or paths_alone:
            raise ConfigError(
                f'Image set {name}: {path}, line {number}: expected "relative/path label", got {shortened(repr(line), 200)}'
            )
        found[0] = found[0].strip()
        same = normpath(normalize("NFC", found[0]))  # ./a.jpg is a.jpg
        if same in lines:
            raise ConfigError(
                f"Image set {name}: {path}, line {number}: lists {found[0]} more than once (first in line {lines[same]})"
            )
        lines[same] = number
        if (image := _as_it_is_written(root, members, found[0])) is None:
            missing.append((found[0], number))
            continue
        names.append(image)
        labels.append(max(int(found[1]), -1))
    if count is not None and len(lines) != count:
        told = f"Image set {name}: {path} {of_list(len(lines), count)}"
        if not partial or len(lines) > count:
            raise ConfigError(f"{told}. Get the published one, or run on what is there with --data.allow_partial=true")
        say_once(f"{told} (data.allow_partial)")
    if missing:
        told = f"of {len(lines):,} images, {of_count(len(names), len(lines))}"
        if partial:
            say_once(f"Image set {name}: {path}: {told} (data.allow_partial)")
        else:
            image, number = missing[0]
            way_out = "; write / between folders, not \\" if "\\" in image else " (key images_root)"
            encoding = ". The name is not UTF-8: save the list as UTF-8" if not_utf8(image) else ""
            raise ConfigError(
                f"Image set {name}: {path}, line {number}: lists {image}, which is not under {root}{way_out}{encoding}; "
                f"{told}"
            )
    given = tuple(labels) if any(label >= 0 for label in labels) else None
    found = (tuple(names), given)
    return ImageList.of(name, root, Files(root, *found) if packed is None else packed.reader(*found))


def _as_it_is_written(root: Path, members: Collection[str] | None, image: str) -> str | None:
    """Returns an image's path in the Unicode form that its file, or one of an archive's `members`, has, or None without a file."""
    if members is not None:
        return next((form for form in map(normpath, forms(image)) if form in members), None)
    return next((form for form in forms(image) if (root / form).is_file()), None)
