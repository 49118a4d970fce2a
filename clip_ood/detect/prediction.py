"""What a detector says of an image, alone and for a batch as tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Neighbour:
    """An ID image of the run, by its path as in scores.parquet, and its cosine to another image."""

    path: str
    cosine: float


@dataclass(frozen=True)
class NearWord:
    """A word of the run's vocabulary, and the cosine of its text embedding to an image."""

    word: str
    cosine: float


@dataclass(frozen=True)
class Prediction:
    """The judgement of a detector on one image.

    path: the file's path, None for a picture that came without one; is_ood: p_value ≤ 1 − accept, or what fdr decides over all
    images (None before it does); score: higher = more in-distribution; p_value: the share of ID images that would score as low, see `clip_ood.calibration`; predicted_class and
    its confidence: from what the predictor's `class_predictor` names, so that confidence is the probability of the head or the
    text embeddings, or the share of the neighbours' votes; both are None without classes; copy_of: the path of the run's own ID image
    that this one is a copy of, whose score is by what has not seen it if the run was cross-fitted or the detector is knn, else None;
    nearest: the nearest ID images, if they were asked for; words: the nearest words of the run's vocabulary, likewise.
    """

    path: str | None
    is_ood: bool | None
    score: float
    p_value: float
    predicted_class: str | None
    confidence: float | None
    detector: str
    copy_of: str | None = None
    nearest: tuple[Neighbour, ...] | None = None
    words: tuple[NearWord, ...] | None = None


@dataclass(frozen=True)
class BatchPredictions:
    """The judgements of K detectors on B images, as tensors on the CPU: scores (B, K) float32, p_values (B, K) float64, is_ood
    (B, K) bool, None if fdr decides later; classes (B,) int64 and confidence (B,) float64, both None without classes; copies, the place
    among the run's ID images of that which each is a copy of (B,), −1 for none; cosines of the nearest ID images (B, N) and their rows;
    cosines of the nearest words (B, M) and their places in the vocabulary.
    """

    scores: Tensor
    p_values: Tensor
    is_ood: Tensor | None
    classes: Tensor | None
    confidence: Tensor | None
    copies: np.ndarray
    cosines: Tensor | None = None
    neighbours: Tensor | None = None
    word_cosines: Tensor | None = None
    words: Tensor | None = None
