"""Reads the catalogue of named sets, `sets.yaml`, as typed values. Nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from clip_ood.errors import ConfigError, nearest


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
    """A part of a set: its published number of images and the keys of an image set for each layout it comes in."""

    images: int
    layouts: list[dict[str, Any]]


@dataclass(frozen=True)
class Entry:
    """A named set as it was published; `overlap`: what is known of its images that show an ImageNet class."""

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
    content = yaml.safe_load(Path(__file__).with_name("sets.yaml").read_text(encoding="utf-8"))
    return {name: _entry(name, keys) for name, keys in content.items()}


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
    splits = {split: Split(**content) for split, content in keys.pop("splits").items()}
    files = tuple(File(**file) for file in keys.pop("files", ()))
    return Entry(name, splits=splits, files=files, **keys)
