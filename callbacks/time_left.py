"""Says, early in a long extraction, how long the rest takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from clip_ood.features.batches import ImageBatch

AFTER = 20  # batches
LONG = 60  # seconds: shorter waits are not told


class TimeLeft(Callback):
    """Tells once, when some batches of images were encoded, how many seconds the others of this process take at that pace.

    The first batch is not counted, since it waits for the encoder. `total` returns the number of this process's images; `tell` is given
    their number that is left, and the seconds.
    """

    def __init__(self, total: Callable[[], int], tell: Callable[[int, float], None]) -> None:
        self.total, self.tell = total, tell
        self.batches = self.images = self.first = 0
        self.started = 0.0

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not (isinstance(batch, ImageBatch) and outputs):
            return
        self.batches += 1
        self.images += len(batch.identities)
        if self.batches == 1:
            self.started, self.first = time.monotonic(), self.images
        if self.batches == AFTER + 1:
            left = self.total() - self.images
            seconds = left * (time.monotonic() - self.started) / (self.images - self.first)
            if seconds >= LONG:
                self.tell(left, seconds)
