"""Parts of image sets and of words that are encoded for the store, and their batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Rows (n,) of a set of images or words that are written as one segment.

    Their identities (n, 2) are given if nothing must be read to know them, as for words, and for images whose embeddings are
    computed from stored features. `name` begins the segment's name, so that the segments of a run are in the order of their
    parts.
    """

    source: str
    name: str
    rows: np.ndarray
    identities: np.ndarray | None = None

    def batch(self, start: int, size: int) -> PartRows:
        """Returns `size` rows from the one at `start`, or fewer at the end."""
        some = slice(start, start + size)
        known = None if self.identities is None else self.identities[some]
        return PartRows(self, self.rows[some], known, start + size >= len(self.rows))


@dataclass(frozen=True)
class PartRows:
    """The rows of one batch of a part, their identities, if they are known, and whether they are the last."""

    part: Part
    rows: np.ndarray
    identities: np.ndarray | None
    last: bool


@dataclass
class ImageBatch:
    """Images of one part.

    `images` (B, 3, H, W) are those that must be encoded, at positions `read` among the n rows of the batch; there are none (0, …)
    if they only had to be read. The identities, and the contents and stamps of the files (None for images in memory), are those
    of all rows, (n, 2) each. `errors` says, by position among those that were read, which images are unreadable (zeros), and why.
    """

    images: Tensor
    part: Part
    read: list[int]
    identities: np.ndarray
    contents: np.ndarray | None
    stamps: np.ndarray | None
    errors: dict[int, str]
    last: bool

    def pin_memory(self) -> ImageBatch:
        self.images = self.images.pin_memory()
        return self


@dataclass
class StoredBatch:
    """Stored features (n, D) of one part, whose embeddings are missing."""

    features: Tensor
    part: Part
    identities: np.ndarray
    last: bool


@dataclass
class WordBatch:
    """The prompts of n words of one part, with all prompts of the first word first; `raw` is that of their `Phrases`."""

    strings: list[str]
    num_prompts: int
    raw: bool
    part: Part
    identities: np.ndarray
    last: bool


@dataclass
class TextBatch:
    """Strings for the text encoder, and whether they are the last ones."""

    strings: list[str]
    last: bool


Batch = ImageBatch | StoredBatch | WordBatch | TextBatch
