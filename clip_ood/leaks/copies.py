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
ROLES = ("train", *HELD_OUT, *TESTED)  # in this order: the copy is the image in the later set


class Pictures(Protocol):
    """What the search asks of a list of images."""

    names: Sequence[str]

    def read(self, index: int) -> Image.Image:
        """The image as 8-bit RGB."""


@dataclass(frozen=True)
class ImageSet:
    """The n readable images of a set.

    Attributes: rows (n,) are their places in `images` and in `features`; contents (n, 2) are their identities; corrupted says that
    they are corruptions, so that `contents` are the identities of the images that they are made of.
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
    """m images of the set `later`, by their rows (m,), which are copies of images of the set `earlier`, by theirs, `originals` (m,).

    Attributes: total is the number of images of `later`; similarity (m,) is 1 unless the copies are near ones.
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
        """Returns for each pair (m,) whether one of its images is taken out; `out` holds, by set, the rows that are."""
        gone = {name: out.get(name, np.empty(0, int)) for name in (self.earlier, self.later)}
        return np.isin(self.originals, gone[self.earlier]) | np.isin(self.rows, gone[self.later])

    def without(self, out: Mapping[str, np.ndarray]) -> Copies:
        """Returns the pairs of which both images are left."""
        left = ~self.dropped(out)
        arrays = {name: getattr(self, name)[left] for name in ("originals", "rows", "similarity")}
        return replace(self, total=self.total - len(out.get(self.later, ())), **arrays)
