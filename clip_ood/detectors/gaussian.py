"""Gaussians with class means and a shared covariance: streaming sums, and the whitening that they give."""

from __future__ import annotations

import torch
from torch import Tensor, nn

TOLERANCE = 1e-10  # eigenvalues below this share of the largest are zero
SHRINKAGE = 0.01


class Moments(nn.Module):
    """Class counts n_c, class sums Σ x and the second moment Σ x xᵀ in float64; they add over batches and processes.

    Shapes: counts (C,), sums (C, D), second (D, D); C grows with the labels that come.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("sums", torch.zeros(0, 0, dtype=torch.float64))
        self.register_buffer("second", torch.zeros(0, 0, dtype=torch.float64))

    def update(self, x: Tensor, labels: Tensor) -> None:
        """Add rows x (n, D) with labels (n,); rows with a negative label are skipped."""
        if not self.sums.numel():
            self.allocate(0, x.shape[1], x.device)
        x, labels = x.to(self.sums.device), labels.to(self.sums.device).long()
        x, labels = x[labels >= 0].double(), labels[labels >= 0]
        if not len(x):
            return
        self.allocate(int(labels.max()) + 1, x.shape[1], x.device)
        self.counts += torch.bincount(labels, minlength=len(self.counts))
        self.sums.index_add_(0, labels, x)
        self.second.addmm_(x.T, x)  # (D, n) @ (n, D) -> (D, D)

    def allocate(self, classes: int, width: int, device: torch.device | str) -> None:
        """Room for so many classes of so many dimensions; what is there is kept, on its own device."""
        if not self.sums.numel():
            self.second = torch.zeros(width, width, dtype=torch.float64, device=device)
            self.counts, self.sums = self.counts.to(device), self.second.new_zeros(len(self.counts), width)
        more = classes - len(self.counts)
        if more > 0:
            self.counts = torch.cat([self.counts, self.counts.new_zeros(more)])
            self.sums = torch.cat([self.sums, self.sums.new_zeros(more, width)])

    def means(self) -> Tensor:
        """Class means μ_c (C, D); zero for a class without rows."""
        return self.sums / self.counts.clamp_min(1)[:, None]

    def mean(self) -> Tensor:
        """Overall mean μ (D,)."""
        return self.sums.sum(dim=0) / self.counts.sum()

    def within(self) -> Tensor:
        """Pooled within-class covariance (1 / N) Σ_c Σ_{i ∈ c} (x_i − μ_c)(x_i − μ_c)ᵀ, (D, D)."""
        return (self.second - self.sums.T @ self.means()) / self.counts.sum()

    def total(self) -> Tensor:
        """Overall covariance (1 / N) Σ_i (x_i − μ)(x_i − μ)ᵀ, (D, D)."""
        return self.second / self.counts.sum() - torch.outer(self.mean(), self.mean())


def whitening(covariance: Tensor, *, shrink: bool) -> tuple[Tensor, str | None]:
    """A (D, r) with A Aᵀ = Σ⁻¹, so that squared distances are ‖Aᵀ(x − μ)‖², and a note where Σ was changed.

    Where the rank of Σ is below D: the pseudo-inverse, or, with `shrink`, the inverse of
    (1 − ε) Σ + ε (tr Σ / D) I, ε = 0.01. Raises ValueError for a covariance of zero.
    """
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    keep = values > TOLERANCE * values[-1]
    if not (keep.any() and values[-1] > 1e-300):
        raise ValueError("the covariance is zero")
    rank, width = int(keep.sum()), len(values)
    if rank < width and shrink:
        values = (1 - SHRINKAGE) * values.clamp_min(0) + SHRINKAGE * values.mean()
        note = f"covariance of rank {rank} < {width}, shrunk: {1 - SHRINKAGE} Σ + {SHRINKAGE} (tr Σ / D) I"
        return vectors / values.sqrt(), note
    return vectors[:, keep] / values[keep].sqrt(), None
