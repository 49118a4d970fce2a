"""Joins the scores of several detectors, whose scales differ, by their ranks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import rankdata


def ranks(scores: np.ndarray, folds: np.ndarray | None = None) -> np.ndarray:
    """Returns the rank of each score as a fraction in (0, 1): (r − 1/2) / n for the r-th smallest of n, ties averaged; NaN for NaN.

    scores: (N,); folds: (N,) numbers, one for each image. Scores of different folds come from detectors that were fitted on
    different images, so that they are compared within their fold alone.

    >>> ranks(np.array([3.0, 1.0, 1.0, np.nan]))
    array([0.83333333, 0.33333333, 0.33333333,        nan])
    """
    found = np.full(len(scores), np.nan)
    for rows in _parts(folds, len(scores)):
        known = rows[~np.isnan(scores[rows])]
        found[known] = (rankdata(scores[known]) - 0.5) / max(len(known), 1)
    return found


def consensus(scores: Mapping[str, np.ndarray], folds: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """Returns the geometric mean (N,) of each image's ranks, in (0, 1): higher means more in-distribution.

    A geometric mean lets an image that one detector finds most suspect stay suspect where the others do not. scores: (N,) by
    detector; a detector counts for the images that it has a score for (not NaN), and an image without any score has NaN. folds: (N,)
    by detector, for those whose scores come from several folds. Raises ValueError if there is no detector.
    """
    if not scores:
        raise ValueError("consensus: there are no scores to join")
    logs = np.stack([np.log(ranks(values, (folds or {}).get(name))) for name, values in scores.items()])
    known = ~np.isnan(logs)
    count = known.sum(axis=0)
    mean = np.where(known, logs, 0).sum(axis=0) / np.maximum(count, 1)
    return np.where(count > 0, np.exp(mean), np.nan)


def _parts(folds: np.ndarray | None, size: int) -> list[np.ndarray]:
    if folds is None:
        return [np.arange(size)]
    return [np.flatnonzero(folds == fold) for fold in np.unique(folds)]
