"""Which detectors' scores say nothing: those that are no numbers, and those that are the same for every image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

ROUNDING = 4 * torch.finfo(torch.float32).eps  # of a score's size: so near, scores are the same


class ScoreRange(Metric):
    """The least and the greatest score of K detectors over all batches and processes, and how many are not finite.

    Every process must call `update` at least once, with an empty batch if it has no image.

    Args:
        detectors: their names, in the order of the columns that come in.
        kwargs: those of `torchmetrics.Metric`.

    Example:
        >>> scores = ScoreRange(["msp", "mine"])
        >>> scores.update(torch.tensor([[0.5, 1.0], [0.7, float("nan")]]))
        >>> scores.broken()
        {'mine': '1 of its 2 scores are NaN or infinite'}
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    images: Tensor
    bad: Tensor
    least: Tensor
    greatest: Tensor

    def __init__(self, detectors: Sequence[str], **kwargs) -> None:
        super().__init__(**kwargs)
        self.detectors = list(detectors)
        count = len(self.detectors)
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("bad", torch.zeros(count, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("least", torch.full((count,), torch.inf), dist_reduce_fx="min")
        self.add_state("greatest", torch.full((count,), -torch.inf), dist_reduce_fx="max")

    def update(self, scores: Tensor) -> None:
        """Add the scores (B, K) of a batch."""
        scores = scores.to(self.device, torch.float32)
        finite = scores.isfinite()
        self.images += len(scores)
        self.bad += (~finite).sum(dim=0)
        if len(scores):
            self.least = torch.minimum(self.least, scores.where(finite, torch.inf).amin(dim=0))
            self.greatest = torch.maximum(self.greatest, scores.where(finite, -torch.inf).amax(dim=0))

    def compute(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The number of images, and by detector (K,) the scores that are not finite, the least and the greatest other one."""
        return self.images, self.bad, self.least, self.greatest

    def broken(self) -> dict[str, str]:
        """Why a detector's scores cannot be used, by its name: some are not finite. The same in every process."""
        images, bad, *_ = (value.reshape(-1).tolist() for value in self.compute())
        said = zip(self.detectors, bad, strict=True)
        return {name: f"{count:,} of its {images[0]:,} scores are NaN or infinite" for name, count in said if count}

    def constant(self) -> dict[str, str]:
        """Why a detector's scores tell no image from another, by its name. The same in every process."""
        images, _, least, greatest = (value.reshape(-1).tolist() for value in self.compute())
        return {
            name: f"it gives all {images[0]:,} images the same score, {low:.6g}"
            for name, low, high in zip(self.detectors, least, greatest, strict=True)
            if images[0] > 1 and high - low <= ROUNDING * max(abs(low), abs(high))
        }
