"""Ranks each score of a stream among calibration scores and all earlier scores of the stream: conformal p-values online."""

from __future__ import annotations

import numpy as np

from clip_ood.errors import UserError

CHUNK = 512  # scores that are compared with each other at a time


class OnlinePValues:
    """p-values of a stream of scores, exactly uniform on (0, 1) and independent while all scores are exchangeable.

    The t-th score s of the stream, ranked among n calibration scores, the t − 1 scores before it, and itself, has
    p = (number below s + u · number equal to s) / (n + t), with u uniform on (0, 1) (Vovk, Gammerman and Shafer, "Algorithmic Learning
    in a Random World", 2005: a smoothed conformal predictor). Scores are exchangeable if one fixed function gave them all and the images, those of
    the calibration first, might as well have come in any other order. The draws u are those of `seed`, one for each score, so that it does
    not matter in which batches scores come. A batch costs O(log² n) an image in the mean.

    `calibration` (n,) may be empty; then only changes after the stream's beginning can be seen. Raises: UserError for NaN.

    >>> p_values, _ = OnlinePValues(np.arange(9.0)).take(np.array([-1.0, 20.0]))
    >>> (10 * p_values[:1] < 1).all(), (11 * p_values[1:] > 10).all()
    (np.True_, np.True_)
    """

    def __init__(self, calibration: np.ndarray, seed: int = 0) -> None:
        self.count = 0  # of all scores so far
        self._runs: list[np.ndarray] = []  # sorted; each is more than twice as long as the next
        self._draws = np.random.PCG64(seed)
        self._keep(_checked(calibration))

    def take(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns p and 1 − p of the next scores of the stream, (B,) -> (B,) and (B,), float64, all above 0."""
        scores = _checked(scores)
        pairs = [self._of_chunk(scores[start : start + CHUNK]) for start in range(0, len(scores), CHUNK)]
        low, high = zip(*pairs, strict=True) if pairs else ((scores,), (scores,))
        return np.concatenate(low), np.concatenate(high)

    def _of_chunk(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        earlier = np.tri(len(scores), k=-1, dtype=bool)  # (B, B): the column came before the row
        below = (earlier & (scores < scores[:, None])).sum(1)
        equal = 1 + (earlier & (scores == scores[:, None])).sum(1)
        for run in self._runs:
            left, right = np.searchsorted(run, scores, "left"), np.searchsorted(run, scores, "right")
            below, equal = below + left, equal + (right - left)
        total = self.count + 1 + np.arange(len(scores))
        # 52 random bits and a half: neither 0 nor 1, and exact
        share = ((self._draws.random_raw(len(scores)) >> np.uint64(12)).astype(np.float64) + 0.5) / 2**52
        self._keep(scores)
        return (below + share * equal) / total, (total - below - equal + (1 - share) * equal) / total

    def _keep(self, scores: np.ndarray) -> None:
        self.count += len(scores)
        new = np.sort(scores)
        while self._runs and len(self._runs[-1]) <= 2 * len(new):
            new = np.sort(np.concatenate([self._runs.pop(), new]), kind="stable")  # merges two sorted runs
        self._runs.append(new)


def _checked(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64).reshape(-1)
    if np.isnan(scores).any():
        raise UserError(
            "A score of a watched stream is NaN, which has no rank: leave the image out that has it, or find out why it has no score"
        )
    return scores
