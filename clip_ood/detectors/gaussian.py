"""Gaussians with class means and a shared covariance: streaming sums, and the whitening that they give."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_ood.detectors.class_sums import ClassSums
from clip_ood.outputs import Outputs

TOLERANCE = 1e-10  # eigenvalues below this share of the largest are zero
SHRINKAGE = 0.01
NOISE = 1e-12  # a variance below this share of the mean square is what float64 sums leave of rows that are equal


class Moments(ClassSums):
    """Counts, sums and second moments Σ x xᵀ in float64, of rows with and of rows without a class label.

    x: `space` ("features" or "logits") of an image, put on the unit sphere first with `unit`. Shapes: counts (1 + C,)
    and sums (1 + C, D), where place 0 is for rows without a label (-1, or no labels at all); second (2, D, D), of rows
    without and of rows with a label.
    """

    def __init__(self, space: str, *, unit: bool = False) -> None:
        super().__init__(self._values, self._places)
        self.space, self.unit = space, unit
        with torch.inference_mode(False):
            self.register_buffer("second", torch.zeros(2, 0, 0, dtype=torch.float64))

    def key(self) -> Hashable:
        return type(self), self.space, self.unit

    def sum_states(self) -> list[Tensor]:
        return [self.counts, self.sums, self.second]

    def labelled(self) -> Tensor:
        """Rows of each class (C,)."""
        return self.counts[1:]

    def means(self) -> Tensor:
        """Class means μ_c (C, D); zero for a class without rows."""
        return super().means()[1:]

    def mean(self) -> Tensor:
        """Mean μ (D,) of rows with a label."""
        return self.sums[1:].sum(dim=0) / self.labelled().sum()

    def within(self) -> Tensor:
        """Pooled within-class covariance (1 / N) Σ_c Σ_{i ∈ c} (x_i − μ_c)(x_i − μ_c)ᵀ, (D, D)."""
        return (self.second[1] - self.sums[1:].T @ self.means()) / self.labelled().sum()

    def total(self) -> Tensor:
        """Covariance (1 / N) Σ_i (x_i − μ)(x_i − μ)ᵀ of rows with a label, (D, D)."""
        return self.second[1] / self.labelled().sum() - torch.outer(self.mean(), self.mean())

    def mean_square(self) -> float:
        """Mean of ‖x‖² of rows with a label."""
        return (self.second[1].trace() / self.labelled().sum()).item()

    def around(self, u: Tensor) -> Tensor:
        """Second moment (1 / N) Σ_i (x_i − u)(x_i − u)ᵀ of all rows around u (D,), (D, D)."""
        cross = torch.outer(self.sums.sum(dim=0) / self.counts.sum(), u)
        return self.second.sum(dim=0) / self.counts.sum() - cross - cross.T + torch.outer(u, u)

    def _allocate(self, classes: int, width: int, device: torch.device | str) -> None:
        if not self.second.numel():
            self.second = self.second.new_zeros(2, width, width, device=device)
        super()._allocate(max(classes, 1), width, device)

    def _values(self, rows: Outputs) -> Tensor:
        return in_space(rows, self.space, unit=self.unit)

    def _places(self, rows: Outputs) -> Tensor:
        if rows.labels is None:
            return torch.zeros(len(rows), dtype=torch.int64)
        return rows.labels.clamp_min(-1) + 1

    def _add(self, values: Tensor, classes: Tensor) -> None:
        super()._add(values, classes)
        for second, chosen in zip(self.second, (classes == 0, classes > 0), strict=True):
            if chosen.any():
                x = values if chosen.all() else values[chosen]
                second.addmm_(x.T, x)  # (D, n) @ (n, D) -> (D, D)


def in_space(rows: Outputs, space: str, *, unit: bool) -> Tensor:
    """The features or logits of some images (n, D), in float64 on the unit sphere with `unit`."""
    values = getattr(rows, space)
    return normalize(values.double(), dim=1) if unit else values


def whitening(covariance: Tensor, *, shrink: bool, mean_square: float = 0.0) -> tuple[Tensor, str | None]:
    """A (D, r) with A Aᵀ = Σ⁻¹, so that squared distances are ‖Aᵀ(x − μ)‖², and a note where Σ was changed.

    Where the rank of Σ is below D: the pseudo-inverse, or, with `shrink`, the inverse of
    (1 − ε) Σ + ε (tr Σ / D) I, ε = 0.01. Raises ValueError for a covariance of zero, or of rounding noise beside the
    `mean_square` of the rows.
    """
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    keep = values > TOLERANCE * values[-1]
    if not (keep.any() and values[-1] > max(1e-300, NOISE * mean_square)):
        raise ValueError("the covariance is zero")
    rank, width = int(keep.sum()), len(values)
    if rank < width and shrink:
        values = (1 - SHRINKAGE) * values.clamp_min(0) + SHRINKAGE * values.mean()
        note = f"covariance of rank {rank} < {width}, shrunk: {1 - SHRINKAGE} Σ + {SHRINKAGE} (tr Σ / D) I"
        return vectors / values.sqrt(), note
    return vectors[:, keep] / values[keep].sqrt(), None
