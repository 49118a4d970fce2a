"""New images through a finished run's encoder and detector: a predict loop, so that devices and nodes come from the Trainer."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule

from clip_ood.judging.batches import Finding, JudgedBatch
from clip_ood.judging.judge import Judge

NOT_FINITE = "the encoder gives NaN or Inf for it"


class Judging(LightningModule):
    """A judge's verdicts on batches of images, at the encoder's own precision."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self.judge = judge

    def predict_step(self, batch: JudgedBatch, batch_idx: int) -> Finding:
        errors = dict(batch.errors)
        if batch.images is None:
            return Finding([], None, errors)
        outputs = self.judge.outputs(batch.images)
        sources = batch.batch.sources
        taken = [place for place, each in enumerate(sources) if each.reason is None]  # a row each
        finite = outputs.features.isfinite().all(dim=1).tolist()
        errors |= {
            place: NOT_FINITE for place, good in zip(taken, finite, strict=True) if not good and place not in errors
        }
        rows = [row for row, place in enumerate(taken) if place not in errors]
        if not rows:
            return Finding([], None, errors)
        if len(rows) < len(taken):
            kept = torch.tensor(rows, device=outputs.features.device)
            outputs = outputs.map(lambda value: value[kept])
        return Finding([taken[row] for row in rows], self.judge.judged(outputs), errors)
