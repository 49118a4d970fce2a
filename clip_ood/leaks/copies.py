"""The sets that copies are sought in, and the copies that were found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from clip_ood.features.rows import Rows

Kind = Literal["exact", "near", "corrupted"]
HELD_OUT = ("val", "ood_val")  # roles of the sets that thresholds and choices come from
TESTED = ("id", "csid", "ood")
ROLES = ("train", *HELD_OUT, *TESTED)  # in this order: of two copies, the later one is spoken of


class Pictures(Protocol):
    """What the search asks of a list of images."""

    names: Sequence[str]

    def read(self, index: int) -> Image.Image:
        """The image as 8-bit RGB."""


@dataclass(frozen=True)
class ImageSet:
    """The n readable images of a set.

    Attributes: rows (n,), their places in `images` and in `features`; contents (n, 2), what tells their contents; corrupted, whether
    each is a corruption: `contents` are then those of the images that they are made of.
    """

    name: str
    role: str
    rows: np.ndarray
    contents: np.ndarray
    images: Pictures
    features: Rows | None = None
    corrupted: bool = False

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Shared:
    """`images` of the `total` images of the set `later` are copies of images of the set `earlier`, which may be the same set."""

    earlier: str
    later: str
    images: int
    total: int
    kind: Kind = "exact"


@dataclass(frozen=True)
class Copies:
    """m images of the set `later`, by their rows (m,), and the rows (m,) of those of the set `earlier` that they are copies of.

    Attributes: total, the images of `later`; similarity (m,), 1 but for near copies.
    """

    earlier: str
    later: str
    kind: Kind
    total: int
    originals: np.ndarray
    rows: np.ndarray
    similarity: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def count(self) -> Shared:
        return Shared(self.earlier, self.later, len(self), self.total, self.kind)

    def dropped(self, out: Mapping[str, np.ndarray]) -> np.ndarray:
        """Of which pairs (m,) one image is among those that are taken `out`, the rows of each set."""
        gone = {name: out.get(name, np.empty(0, int)) for name in (self.earlier, self.later)}
        return np.isin(self.originals, gone[self.earlier]) | np.isin(self.rows, gone[self.later])

    def without(self, out: Mapping[str, np.ndarray]) -> Copies:
        """Those that are left."""
        left = ~self.dropped(out)
        arrays = {name: getattr(self, name)[left] for name in ("originals", "rows", "similarity")}
        return replace(self, total=self.total - len(out.get(self.later, ())), **arrays)
