"""Measures, within a run, how many images a second it encodes and trains on: a callback for `trainer.callbacks`."""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from clip_ood.features.batches import ImageBatch


class Pace(Callback):
    """Writes {"extraction": …, "training": …}, images a second of all devices together, to the file `path`.

    Extraction counts from half of each process's images on, from the file to the written features: the start is over by then, and so is
    what was read ahead during it. Training is the last epoch, without validation. What did not happen is null.
    """

    def __init__(self, path: str) -> None:
        self.path, self.seen = path, []
        self.pace: dict[str, float | None] = {"extraction": None, "training": None}

    def on_predict_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int, loader: int = 0
    ) -> None:
        if isinstance(batch, ImageBatch):
            self.seen.append((perf_counter(), len(batch.images)))

    def on_predict_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        mine = torch.tensor(rate(self.seen), device=trainer.strategy.root_device)
        if (all_together := float(trainer.strategy.reduce(mine, reduce_op="sum"))) > 0:
            self._keep(trainer, "extraction", all_together)

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._keep(trainer, "training", float(trainer.callback_metrics["train/images_per_second"]))

    def _keep(self, trainer: Trainer, kind: str, images_per_second: float) -> None:
        self.pace[kind] = images_per_second
        if trainer.is_global_zero:
            Path(self.path).write_text(json.dumps(self.pace), encoding="utf-8")


def rate(seen: list[tuple[float, int]]) -> float:
    """Returns images a second over the second half of batches (when each ended, its images); 0 for less than two batches.

    >>> rate([(0.0, 8), (5.0, 8), (6.0, 8), (7.0, 4)])
    6.0
    """
    if len(seen) < 2:
        return 0.0
    half = (len(seen) - 1) // 2
    return sum(images for _, images in seen[half + 1 :]) / (seen[-1][0] - seen[half][0])
