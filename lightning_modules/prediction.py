"""Judges new images by a finished run's encoder and detector in a predict loop, so that devices and nodes come from the Trainer."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule

from clip_ood.detect.adaptive_predictor import AdaptivePredictor
from clip_ood.detect.batches import NOT_FINITE, BatchResult, NewImageBatch
from clip_ood.detect.predictor import Predictor


class PredictionModule(LightningModule):
    """Computes predictions on batches of images, at the encoder's own precision."""

    def __init__(self, predictor: Predictor | AdaptivePredictor) -> None:
        super().__init__()
        self.predictor = predictor

    def predict_step(self, batch: NewImageBatch, batch_idx: int) -> BatchResult:
        errors = dict(batch.errors)
        if batch.images is None:
            return BatchResult([], None, errors)
        outputs = self.predictor.outputs(batch.images)
        sources = batch.batch.sources
        taken = [place for place, each in enumerate(sources) if each.reason is None]  # each has a row
        finite = outputs.features.isfinite().all(dim=1).tolist()
        errors |= {
            place: NOT_FINITE for place, good in zip(taken, finite, strict=True) if not good and place not in errors
        }
        rows = [row for row, place in enumerate(taken) if place not in errors]
        if not rows:
            return BatchResult([], None, errors)
        if len(rows) < len(taken):
            kept = torch.tensor(rows, device=outputs.features.device)
            outputs = outputs.map(lambda value: value[kept])
        judged = self.predictor.predict(outputs, batch.contents[rows])
        return BatchResult([taken[row] for row in rows], judged, errors)
