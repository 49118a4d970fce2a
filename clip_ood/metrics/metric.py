"""The metrics of OOD detection as a torchmetrics `Metric`, for any training or evaluation loop."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from clip_ood.metrics.curves import curve_metrics
from clip_ood.metrics.ranking import rank_scores


class OODMetrics(Metric):
    """AUROC, FPR@95 (both ways), AUPR (both ways) and best F1 over all batches and processes, exactly.

    Scores are used as they are: no sigmoid, no normalisation. Formulas at `clip_ood.metrics.curve_metrics`. Call
    `update` on each batch, then `compute`; calling the metric itself fails on a batch of a single class.

    Example:
        >>> metric = OODMetrics()
        >>> metric.update(torch.tensor([-900.0, -990.0]), torch.tensor([True, False]))
        >>> metric.update(torch.tensor([-950.0, -930.0]), torch.tensor([True, False]))
        >>> metric.compute()["auroc"]
        tensor(0.7500, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = None  # depends on the metric
    full_state_update = False

    scores: list[Tensor]
    is_id: list[Tensor]

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("is_id", default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, is_id: Tensor) -> None:
        """Add a batch.

        Args:
            scores: (B,) floating point, higher is more in-distribution, on any scale.
            is_id: (B,) bool or 0/1, which images are in-distribution.

        Raises:
            ValueError: shapes that differ or have more than one dimension; is_id other than 0 and 1.
        """
        if scores.ndim != 1 or scores.shape != is_id.shape:
            raise ValueError(
                f"scores have shape {tuple(scores.shape)} and is_id {tuple(is_id.shape)}, expected (B,) for both"
            )
        if ((is_id != 0) & (is_id != 1)).any():
            raise ValueError(f"is_id has values {is_id.unique().tolist()[:5]}, expected 0 (OOD) and 1 (ID) only")
        self.scores.append(scores.detach())
        self.is_id.append(is_id.to(torch.uint8))  # bytes: not every backend gathers bool

    def compute(self) -> dict[str, Tensor]:
        """Scalar float64 tensor, a fraction in [0, 1], for each name in `clip_ood.metrics.METRICS`.

        Raises:
            ValueError: only one class was seen, or scores are NaN or infinite.
        """
        scores, is_id = dim_zero_cat(self.scores), dim_zero_cat(self.is_id).bool()
        values = curve_metrics(rank_scores(scores[is_id], scores[~is_id]))
        return {name: value.squeeze(0) for name, value in values.items()}
