"""Batches of new images, before and after they are judged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from clip_ood.data.inputs import Source
from clip_ood.detect.adaptive_predictor import AdaptedBatch
from clip_ood.detect.prediction import BatchPredictions

NOT_FINITE = "the encoder gives NaN or Inf for it"  # why an image is not judged


@dataclass
class SourceBatch:
    """The next sources of a part, of which at most one batch may be images; `last` says whether they end the part."""

    sources: tuple[Source, ...]
    part: int
    last: bool


@dataclass
class NewImageBatch:
    """Images (B, 3, H, W), or None if there are none, and the sources of the batch: the row of each image (None for other
    sources), and the reasons why some cannot be read; contents (B, 2) are the identities of the images' files.
    """

    images: Tensor | None
    batch: SourceBatch
    errors: dict[int, str]
    contents: np.ndarray

    @property
    def last(self) -> bool:
        """Says whether this batch is the last of its part."""
        return self.batch.last

    def pin_memory(self) -> NewImageBatch:
        self.images = None if self.images is None else self.images.pin_memory()
        return self


@dataclass(frozen=True)
class BatchResult:
    """The results of a batch of sources: the places of those that were judged, their predictions, and the reasons for all others."""

    places: list[int]
    judged: BatchPredictions | AdaptedBatch | None
    errors: dict[int, str]
