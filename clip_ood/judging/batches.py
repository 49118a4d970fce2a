"""Batches of new images, as they are read and as they were judged."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from clip_ood.data.inputs import Source
from clip_ood.judging.judge import Judged


@dataclass
class SourceBatch:
    """The next sources of a part, at most a batch of which may be images; `last` of its part."""

    sources: tuple[Source, ...]
    part: int
    last: bool


@dataclass
class JudgedBatch:
    """Images (B, 3, H, W), None without any, and of all sources of the batch: which row each has (None: none), and why some
    cannot be read."""

    images: Tensor | None
    batch: SourceBatch
    errors: dict[int, str]

    @property
    def last(self) -> bool:
        """Whether it is the last of its part."""
        return self.batch.last

    def pin_memory(self) -> JudgedBatch:
        self.images = None if self.images is None else self.images.pin_memory()
        return self


@dataclass(frozen=True)
class Finding:
    """What was found of a batch of sources: the places of those that were judged, what of them, and why others were not."""

    places: list[int]
    judged: Judged | None
    errors: dict[int, str]
