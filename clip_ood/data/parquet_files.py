"""Lists the images in parquet files, or in folders of them."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from clip_ood.data.bucket_tree import in_bucket
from clip_ood.data.class_order import in_order
from clip_ood.data.parquet_table import SUFFIX, ParquetTable, WrongTable
from clip_ood.data.readers.objects import looked_up
from clip_ood.data.readers.packed import Packed
from clip_ood.errors import ConfigError
from clip_ood.files.hidden import is_hidden
from clip_ood.files.remote.address import Address, WrongAddress
from clip_ood.files.remote.fetched import local
from clip_ood.files.remote.listing import kind

SPLITS = ("train", "test", "validation", "valid", "val", "dev")
PART = re.compile(r"(.*)-(\d+)-of-(\d+)")  # train-00000-of-00002


def read_parquet(
    set_name: str, paths: list[Path | Address], image: str | None, label: str | None, labelled: bool, split: str | None
) -> Packed:
    """Lists the images of parquet files, or of those in folders, called "file/row"; no image is read.

    Raises: ConfigError for a file that is not whole, has other columns or names a wrong address, several splits in a folder, and a split of which files are
    missing.
    """
    names, places, labels, known = [], [], [], []
    for path, called in [file for named in paths for file in _files(set_name, named, split)]:
        where = f"Image set {set_name}: {path}"
        try:
            file = ParquetTable(local(path), image, path.parent)
            found = list(file.places())
            if wrong := next(((row, each) for row, each in enumerate(found) if isinstance(each, WrongAddress)), None):
                raise ConfigError("{}, row {}: {}".format(where, *wrong))
            found = looked_up(found)
            told = file.labels(label) if labelled or label is not None else None
        except WrongTable as error:
            raise ConfigError(f"{where}: {error}") from None
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ConfigError(f"{where} cannot be read: {error}") from None
        names += [f"{called}/{row:06d}" for row in range(len(found))]
        places += found
        values, of_classes = told or ([None] * len(found), None)
        labels += values
        known.append(of_classes)
    if any(each != known[0] for each in known):
        raise ConfigError(f"Image set {set_name}: the files of {paths[0]} name other classes: make a set of each")
    try:
        return Packed(places, tuple(names), *classes_of(labels, known[0] if known else None))
    except WrongTable as error:
        raise ConfigError(f"Image set {set_name}: {paths[0]}: {error}") from None


def _files(set_name: str, path: Path | Address, split: str | None) -> list[tuple[Path | Address, str]]:
    """Returns the parquet files that a path names, and how each is called: itself, or those of one split in a folder."""
    is_elsewhere = isinstance(path, Address)
    if not (kind(path) == "folder" if is_elsewhere else path.is_dir()):
        return [(path, path.name)]
    if is_elsewhere:
        found = [Path(name) for name in in_bucket(set_name, path).files if name.endswith(SUFFIX)]
    else:
        found = sorted(each.relative_to(path) for each in path.rglob(f"*{SUFFIX}"))
    splits: dict[str, list[Path]] = defaultdict(list)
    for each in found:
        if not is_hidden(str(each)):
            splits[_split_of(each)].append(each)
    if split is not None:
        if split not in splits:
            raise ConfigError(
                f"Image set {set_name}: {path} has no split {split}; it has {', '.join(filter(None, sorted(splits))) or 'none'}"
            )
        splits = {split: splits[split]}
    if len(splits) > 1:
        raise ConfigError(
            f"Image set {set_name}: {path} holds several splits, {', '.join(map(repr, sorted(splits)))}: name one (key split)"
        )
    for each in splits.values():
        counts = {int(part.group(3)) for path in each if (part := PART.fullmatch(path.stem))}
        if counts and counts != {len(each)}:
            raise ConfigError(
                f"Image set {set_name}: {path} holds {len(each)} of {max(counts)} files, as {each[0].name}: get the others"
            )
    return [(path / each, each.as_posix()) for each in next(iter(splits.values()), [])]


def _split_of(path: Path) -> str:
    """Returns the split that a file is of by its name or a folder's, or "" if none tells it.

    >>> [_split_of(Path(path)) for path in ("a-0-of-2.parquet", "default/train/0000.parquet", "test.parquet", "x.parquet")]
    ['a', 'train', 'test', '']
    """
    if part := PART.fullmatch(path.stem):
        return part.group(1)
    return next((name for name in (path.stem, *reversed(path.parent.parts)) if name.lower() in SPLITS), "")


def classes_of(labels: list[Any], names: list[str] | None) -> tuple[tuple[int, ...] | None, tuple[str, ...] | None]:
    """Returns labels as numbers, and the names of those classes that have images."""
    given = {label for label in labels if label is not None and label != -1}
    if not given:
        return None, None
    if names is None and all(isinstance(label, int) for label in given):
        if (least := min(given)) < 0:
            raise WrongTable(f"it has the label {least}; labels count from 0, and -1 is none")
        return tuple(-1 if label is None else label for label in labels), None
    if names is not None:
        if wrong := [label for label in given if not 0 <= label < len(names)]:
            raise WrongTable(f"it has the label {wrong[0]}, and names {len(names)} classes (0 … {len(names) - 1})")
        labels = [None if label in (None, -1) else names[label] for label in labels]
    order = in_order({label for label in labels if label is not None})
    if wrong := [label for label in order if label.strip() in ("", "-1")]:
        raise WrongTable(
            f"it has the label {wrong[0]!r} as a text, which is no class: call the class otherwise or, where an image has none, leave the cell "
            "empty (null), or give all labels as numbers, of which -1 is none"
        )
    number = {label: index for index, label in enumerate(order)}
    return tuple(number.get(label, -1) for label in labels), tuple(label.replace("_", " ") for label in order)
