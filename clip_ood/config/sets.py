"""Reads the catalogue of named sets, the files of `catalogue/`, as typed values. Nothing heavy is imported.

Each file holds a family of sets, and a set says what was published, where it lies under data.root and where to get it:

    NAME:
      about     what it is, in a line
      classes   how many (left out: none)
      group     how tables group it as an OOD set; a config may say otherwise
      overlap   for an OOD set of ImageNet: what is published of its images that show an ImageNet class after all, and by whom
      licence   a note for orientation; what the source's own page says decides
      source    page that describes it
      splits    {NAME: {images: published count, left out where none is published, layouts: [keys of an image set, …]}}, with classes
                and group where they are the split's own; the layout that is there is taken
      files     what `get` downloads: url, gives (what it unpacks to under data.root), size (about), md5 where one is known
      size      about how large all of it is, where files do not say
      how       what to do where `get` may not or cannot download
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from clip_ood.errors import ConfigError, nearest

FAMILIES = ("cifar", "imagenet", "imagenet_ood", "imagenet_shifted", "fine_grained", "spurious")
UNITS = {"GB": 1e9, "MB": 1e6, "kB": 1e3}


@dataclass(frozen=True)
class File:
    """A file that `get` downloads: `gives` is what it unpacks to under data.root, and `size` is a text for people."""

    url: str
    gives: str
    size: str = ""
    md5: str | None = None

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class Split:
    """A part of a set: its published number of images (None: not published), the keys of an image set for each layout it comes in,
    and its own number of classes and group where these are not the set's."""

    images: int | None
    layouts: list[dict[str, Any]]
    classes: int | None = None
    group: str | None = None


@dataclass(frozen=True)
class Entry:
    """A named set as it was published; `overlap`: what is known of its images that show an ImageNet class; `bulk`: about how large it is
    where its files do not say."""

    name: str
    about: str
    licence: str
    source: str
    splits: dict[str, Split]
    classes: int | None = None
    group: str | None = None
    files: tuple[File, ...] = ()
    how: str = ""
    overlap: str = ""
    bulk: str = ""

    @property
    def size(self) -> str:
        """About how large the set is as it is downloaded, for people; empty where that is not known."""
        sizes = [file.size for file in self.files]
        return self.bulk or (total(sizes) if sizes and all(sizes) else "")

    def split(self, name: str | None) -> Split:
        """Returns the split of that name or, without a name, the only split or `test`.

        Raises: ConfigError, which names the existing splits.
        """
        if name is None:
            name = next(iter(self.splits)) if len(self.splits) == 1 else "test"
        if name not in self.splits:
            raise ConfigError(f"{self.name} has no split {name!r}; name one with `split`: {', '.join(self.splits)}")
        return self.splits[name]

    def advice(self, root: Path) -> str:
        """Says how a user gets the set."""
        got = f"clip-ood catalog get {self.name} --root={root}" if self.files else ""
        return " · ".join(filter(None, (got, self.how)))


@cache
def catalogue() -> dict[str, Entry]:
    """Returns all named sets."""
    folder = Path(__file__).with_name("catalogue")
    contents = [yaml.safe_load((folder / f"{family}.yaml").read_text(encoding="utf-8")) for family in FAMILIES]
    return {name: _entry(name, keys) for content in contents for name, keys in content.items()}


def total(sizes: list[str]) -> str:
    """Returns the sum of sizes as people write them.

    >>> total(["182 MB", "64 MB"]), total(["10 MB", "29 kB", "2 MB"]), total(["2.75 GB"])
    ('246 MB', '12 MB', '2.75 GB')
    """
    if len(sizes) == 1:
        return sizes[0]
    whole = sum(float(number) * UNITS[unit] for number, unit in map(str.split, sizes))
    unit = next(unit for unit, factor in UNITS.items() if whole >= factor)
    return f"{whole / UNITS[unit]:.3g} {unit}"


def entry(name: str) -> Entry:
    """Returns the set of that name.

    Raises: ConfigError, which names the nearest ones.
    """
    if name not in catalogue():
        raise ConfigError(
            f"The catalogue has no set {name!r}.{nearest(name, catalogue())} All: {', '.join(catalogue())}"
        )
    return catalogue()[name]


def _entry(name: str, keys: dict[str, Any]) -> Entry:
    splits = {split: Split(**{"images": None} | content) for split, content in keys.pop("splits").items()}
    files = tuple(File(**file) for file in keys.pop("files", ()))
    return Entry(name, splits=splits, files=files, bulk=keys.pop("size", ""), **keys)
