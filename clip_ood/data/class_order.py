"""Decides in which order folders number the classes, and which folders are no classes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from clip_ood.errors import ConfigError
from clip_ood.naming import one_text

if TYPE_CHECKING:
    from clip_ood.data.image_list import ImageList

SPLITS = {  # name of a published split's folder -> its key under data.id
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def is_number(name: str) -> bool:
    """Says whether a class is called by a number, in plain digits."""
    return name.isascii() and name.isdecimal()


def in_order(names: Iterable[str]) -> list[str]:
    """Sorts the names of classes into label order: by value if all are numbers, otherwise as text.

    >>> in_order(["10", "9", "0"]), in_order(["10", "9", "a"])
    (['0', '9', '10'], ['10', '9', 'a'])
    """
    names = list(names)
    return sorted(names, key=lambda name: (int(name), name)) if all(map(is_number, names)) else sorted(names)


def check_no_splits(set_name: str, folder: Path, images: ImageList) -> None:
    """Raises ConfigError if the folders that would be classes are splits of a set: train, val and test with the same folders in
    each, or nothing but such folders.
    """
    if not any(one_text(name) in SPLITS for name in images.class_names):
        return
    inside: dict[str, set[str]] = defaultdict(set)
    for path in images.names:
        first, *more, _ = path.split("/")
        inside[first] |= set(more[:1])
    splits = {one_text(first): first for first in inside if one_text(first) in SPLITS}
    within = [inside[first] for first in splits.values()]
    alone = len(splits) == len(inside) and (len(splits) > 1 or any(within))
    if not (alone or (len(splits) > 1 and set.intersection(*within))):
        return
    keys = {SPLITS[split]: folder / first for split, first in splits.items()}
    test = keys.get("test") or keys.get("val")
    way_out = f"name one of them, as {folder / min(splits.values())}"
    if set_name == "id" and "train" in keys and test is not None:
        way_out = f"name them, --data.id='{{train: {keys['train']}, test: {test}}}'"
    raise ConfigError(
        f"Image set {set_name}: the folders of {images.root} are splits ({', '.join(sorted(splits.values()))}), not classes: {way_out}"
    )
