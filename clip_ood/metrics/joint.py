"""Metrics that judge a classifier and its rejections together, as torchmetrics `Metric`s for any evaluation loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from clip_ood.metrics.gathered import GatheredMetric
from clip_ood.metrics.open_set import auoscr
from clip_ood.metrics.risk_coverage import OOD_COST, augrc, aurc, checked_cost, scod_aurc

OF_ID = ("aurc", "augrc")
OF_SETS = ("auoscr", "scod_aurc")


class RiskCoverage(GatheredMetric):
    """`aurc` and `augrc` of ID images over all batches and processes, exactly, with a detector's score as the confidence.

    Each process must call `update`, with an empty batch if it has no image. `compute` raises ValueError for fewer than two images,
    and for scores that are NaN or infinite.

    Args:
        detectors: names of K detectors whose scores are the columns of each batch; None for scores of one detector.
        kwargs: those of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = RiskCoverage()
        >>> metric.update(torch.tensor([0.9, 0.7]), torch.tensor([True, True]))
        >>> metric.update(torch.tensor([0.8]), torch.tensor([False]))
        >>> metric.compute()["augrc"]
        tensor(0.2500, dtype=torch.float64)
    """

    higher_is_better = False
    of_image: ClassVar[tuple[str, ...]] = ("correct",)

    correct: list[Tensor]

    def update(self, scores: Tensor, correct: Tensor, indices: Tensor | None = None) -> None:
        """Add a batch of ID images that have a label.

        Args:
            scores: (B,) floating point, or (B, K) for K detectors; higher is more in-distribution, on any scale.
            correct: (B,) bool or 0/1, which images are classified right.
            indices: (B,) int64, an image's number. One that comes twice then counts once. Give them with every batch or never.

        Raises:
            ValueError: shapes that are not these; correct other than 0 and 1.
        """
        self._add(scores, indices, correct=correct)

    def _metrics(self, scores: Tensor, correct: Tensor) -> dict[str, Tensor]:
        return self._tensors({"aurc": aurc(scores, ~correct), "augrc": augrc(scores, ~correct)})


class OpenSetMetrics(GatheredMetric):
    """`auoscr` and `scod_aurc` of ID against OOD images over all batches and processes, exactly.

    Each process must call `update`, with an empty batch if it has no image. `compute` raises ValueError where there are no ID or no
    OOD images, and for scores that are NaN or infinite.

    Args:
        detectors: names of K detectors whose scores are the columns of each batch; None for scores of one detector.
        ood_cost: what an accepted OOD image costs, between 0 and 1 (see `clip_ood.metrics.scod_losses`).
        kwargs: those of `torchmetrics.Metric`.

    Raises:
        ValueError: a cost outside [0, 1].

    Example:
        >>> import torch
        >>> metric = OpenSetMetrics()
        >>> metric.update(torch.tensor([3.0, 2.0]), is_id=True, correct=torch.tensor([True, False]))
        >>> metric.update(torch.tensor([3.0, 1.0]), is_id=False)
        >>> metric.compute()["auoscr"]
        tensor(0.3750, dtype=torch.float64)
    """

    of_image: ClassVar[tuple[str, ...]] = ("is_id", "correct")

    is_id: list[Tensor]
    correct: list[Tensor]

    def __init__(self, detectors: Sequence[str] | None = None, ood_cost: float = OOD_COST, **kwargs) -> None:
        super().__init__(detectors, **kwargs)
        self.ood_cost = checked_cost(ood_cost)

    def update(
        self, scores: Tensor, is_id: Tensor | bool, correct: Tensor | bool = False, indices: Tensor | None = None
    ) -> None:
        """Add a batch.

        Args:
            scores: (B,) floating point, or (B, K) for K detectors; higher is more in-distribution, on any scale.
            is_id: (B,) bool or 0/1, which images are in-distribution; one truth value stands for the whole batch.
            correct: (B,) bool or 0/1, which ID images are classified right; of OOD images it says nothing.
            indices: (B,) int64, an image's number among the ID or among the OOD images. One that comes twice then counts once. Give
                them with every batch or never.

        Raises:
            ValueError: shapes that are not these; is_id or correct other than 0 and 1.
        """
        self._add(scores, indices, is_id=is_id, correct=correct)

    def _keys(self, indices: Tensor, is_id: Tensor, correct: Tensor) -> Tensor:
        return indices * 2 + is_id

    def _metrics(self, scores: Tensor, is_id: Tensor, correct: Tensor) -> dict[str, Tensor]:
        inside, outside, right = scores[is_id], scores[~is_id], correct[is_id]
        found = {
            "auoscr": auoscr(inside, right, outside),
            "scod_aurc": scod_aurc(inside, right, outside, self.ood_cost),
        }
        return self._tensors(found)
