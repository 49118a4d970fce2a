"""Scores images as a stream, in their order, with a test-time method and a finished run's encoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from clip_ood.backbones.backbone import Backbone
from clip_ood.class_predictions import HEAD, KNN, predict
from clip_ood.detect.saved import SavedDetector
from clip_ood.model import ReferenceHead
from clip_ood.outputs import Outputs
from clip_ood.stream.adaptive import AdaptiveDetector


@dataclass(frozen=True)
class AdaptedPrediction:
    """The score of an image in a stream: the fields of a `Prediction`, of which is_ood and p_value are None.

    adapted_on: the images of the stream that came before this one, of all calls that share the memory.
    """

    path: str | None
    score: float
    predicted_class: str | None
    confidence: float | None
    detector: str
    copy_of: str | None
    adapted_on: int
    is_ood: bool | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class AdaptedBatch:
    """Scores (B,) float64, classes (B,) and their confidence (B,), None without; copies, as in BatchPredictions; images seen before."""

    scores: Tensor
    classes: Tensor | None
    confidence: Tensor | None
    copies: np.ndarray
    seen: int


class AdaptivePredictor(nn.Module):
    """Encodes images as a run's `Predictor` does, and scores them by a test-time method, batch after batch; `seen` counts them.

    There is no threshold: those of the run are calibrated on scores that do not depend on a stream. Classes are predicted by the head or the
    texts; a run that predicts by neighbours has none here.
    """

    def __init__(
        self, saved: SavedDetector, backbone: Backbone, label: str, method: AdaptiveDetector, seen: int
    ) -> None:
        super().__init__()
        self.decisions = (label,)  # one line an image
        self.label, self.method, self.seen = label, method, seen
        self.batch_size: int = saved.manifest["batch_size"]
        self.class_names, self.logit_scale = saved.reference.class_names, saved.reference.logit_scale
        self.encoder, self.backbone, self.images = saved.encoder, backbone, saved.bank_images()
        told = saved.class_predictor
        self.by = HEAD if told is None else told.by
        self.head = ReferenceHead(saved.reference)

    def outputs(self, pixels: Tensor) -> Outputs:
        """Returns the outputs of encoder and head for images (B, 3, H, W) that went through the encoder's transform."""
        return self.head(self.encoder.encode(self.backbone, pixels))

    def predict(self, outputs: Outputs, contents: np.ndarray) -> AdaptedBatch:
        """Returns the scores of the next images of the stream, whose files have `contents` (B, 2), and updates the memory."""
        copies = np.full(len(outputs), -1) if self.images is None else self.images.find(contents)
        predicted = None
        if self.by != KNN:
            predicted = predict(outputs, self.head.text_embeddings, self.logit_scale, self.by)
        classes, confidence = (None, None) if predicted is None else (value.cpu() for value in predicted)
        scores, seen = self.method.score(outputs).cpu(), self.seen
        self.seen += len(outputs)
        return AdaptedBatch(scores, classes, confidence, copies, seen)

    def predictions(self, judged: AdaptedBatch, names: list[str | None]) -> list[AdaptedPrediction]:
        """Returns an AdaptedPrediction for each image."""
        classes, confidence = [None] * len(names), [None] * len(names)
        if judged.classes is not None:
            classes = [self.class_names[label] for label in judged.classes.tolist()]
            confidence = judged.confidence.tolist()
        copies = [None if place < 0 else self.images.paths[place] for place in judged.copies.tolist()]
        return [
            AdaptedPrediction(*each, self.label, copy, judged.seen + place)
            for place, (*each, copy) in enumerate(
                zip(names, judged.scores.tolist(), classes, confidence, copies, strict=True)
            )
        ]
