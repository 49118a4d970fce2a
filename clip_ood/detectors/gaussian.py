"""Gaussians with class means and a shared covariance: their sums, taken while images stream by, and their whitening."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from clip_ood.detectors.class_sums import ClassSums
from clip_ood.detectors.exchange import Exchange
from clip_ood.errors import UserError
from clip_ood.outputs import Outputs
from clip_ood.threads import one_thread

TOLERANCE = 1e-10  # eigenvalues below this share of the largest are zero
SHRINKAGE = 0.01
DOUBLE = torch.finfo(torch.float64).eps
COMPUTED = 2  # machine epsilons that float32 arithmetic may leave in a direction: up to 1 was seen
ROUNDED = 0.5  # … that a single rounding to half precision may: its variance is at most ε² / 12, and three times that is ε² / 4
WIDE = 2048  # rows of a matrix up to which one thread decomposes it
BATCHES = 8  # machine epsilons by which an encoder's outputs may differ between batches: 1e-6 in float32
HALVES = (torch.bfloat16, torch.float16)
FEW = 16  # rows that nearly always show whether all are half-precision values
STRIP = 192  # rows of a second moment that are summed at once, of which the part left of the diagonal is left out


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the eigenvalues (D,), ascending, and eigenvectors (D, D) of a symmetric matrix (D, D)."""
    with one_thread(len(matrix) <= WIDE):
        return torch.linalg.eigh(matrix)


@dataclass(frozen=True)
class Rounding:
    """The largest variance that rounding alone can cause in rows: in any `direction`, and in `all` D directions together."""

    direction: float
    all: float

    def rank(self, values: Tensor) -> int:
        """Returns how many of a covariance's ascending eigenvalues (D,) are not due to rounding."""
        return int((values > max(TOLERANCE * values[-1].item(), self.direction)).sum())


@dataclass(frozen=True)
class Spectrum:
    """The eigenvalues (D,), ascending, and eigenvectors (D, D) of a covariance; the last `rank` are not due to rounding."""

    values: Tensor
    vectors: Tensor
    rank: int

    @classmethod
    def of(cls, covariance: Tensor, rounding: Rounding) -> Spectrum:
        """Decomposes a covariance Σ (D, D). Raises ValueError if Σ is zero or due to rounding alone."""
        values, vectors = eigh(covariance)
        rank = rounding.rank(values)
        if not rank or values[-rank:].sum() <= rounding.all:
            raise UserError("the covariance is zero")
        return cls(values, vectors, rank)

    @property
    def is_full(self) -> bool:
        """Says whether the rank is D."""
        return self.rank == len(self.values)

    def inverted(self) -> Tensor:
        """Returns A (D, rank) with A Aᵀ = Σ⁺, so that squared distances are ‖Aᵀ(x − μ)‖²."""
        return self.vectors[:, -self.rank :] / self.values[-self.rank :].sqrt()

    def shrunk(self) -> Tensor:
        """Returns A (D, D) with A Aᵀ the inverse of (1 − ε) Σ + ε (tr Σ / D) I, ε = 0.01."""
        values = (1 - SHRINKAGE) * self.values.clamp_min(0) + SHRINKAGE * self.values.mean()
        return self.vectors / values.sqrt()

    def shrunk_from_isotropic(self) -> tuple[Tensor, Tensor]:
        """Returns A (D, rank) and κ () with κ I − A Aᵀ the inverse of (1 − ε) Σ + ε (tr Σ / D) I, ε = 0.01.

        Outside the `rank` directions, whose eigenvalues are due to rounding, Σ counts as 0.
        """
        least = SHRINKAGE * self.values.mean()
        values = (1 - SHRINKAGE) * self.values[-self.rank :] + least
        return self.vectors[:, -self.rank :] * (1 / least - 1 / values).sqrt(), 1 / least


class Moments(ClassSums):
    """Counts, sums and second moments Σ x xᵀ in float64, of rows with and of rows without a class label.

    x is the `space` ("features" or "logits") of an image, divided by ‖x‖^`beta` first. Shapes: counts (1 + C,) and sums (1 + C, D), where place 0 is for rows without a label (-1, or no labels at all); second (2, D, D), of rows
    without and of rows with a label, whose part below the diagonal is not summed; epsilon (), the machine epsilon of the coarsest dtype in which rows, or the values that
    they were made of, came in; finer (2,), whether some feature is not a bfloat16 value, or not a float16 value. If every feature
    is one, the features were computed in that dtype, whatever dtype they came in: a feature store keeps the features of a bfloat16
    encoder as float16. Without `classes`, all rows are of class 0, whatever their labels.
    """

    def __init__(self, space: str, *, beta: float = 0.0, classes: bool = True) -> None:
        super().__init__(self._values, self._places if classes else _one_place)
        self.space, self.beta, self.by_class = space, beta, classes
        with torch.inference_mode(False):
            self.register_buffer("second", torch.zeros(2, 0, 0, dtype=torch.float64))
            self.register_buffer("epsilon", torch.tensor(DOUBLE, dtype=torch.float64))
            self.register_buffer("finer", torch.zeros(len(HALVES), dtype=torch.int64))

    def key(self) -> Hashable:
        return type(self), self.space, self.beta, self.by_class

    def sum_states(self) -> list[Tensor]:
        return [self.counts, self.sums, self.second]

    def labelled(self) -> Tensor:
        """Returns the number of rows of each class (C,)."""
        return self.counts[1:]

    def means(self) -> Tensor:
        """Returns class means μ_c (C, D); a mean is zero for a class without rows."""
        return super().means()[1:]

    def mean(self) -> Tensor:
        """Returns the mean μ (D,) of rows with a label."""
        return self.sums[1:].sum(dim=0) / self.labelled().sum()

    def within(self) -> Tensor:
        """Returns the pooled within-class covariance (1 / N) Σ_c Σ_{i ∈ c} (x_i − μ_c)(x_i − μ_c)ᵀ, (D, D)."""
        return (self._moment(1) - self.sums[1:].T @ self.means()) / self.labelled().sum()

    def total(self) -> Tensor:
        """Returns the covariance (1 / N) Σ_i (x_i − μ)(x_i − μ)ᵀ of rows with a label, (D, D)."""
        return self._moment(1) / self.labelled().sum() - torch.outer(self.mean(), self.mean())

    def rounding(self, u: Tensor | None = None) -> Rounding:
        """Returns the variance that rounding may leave in `within` and `total`, or with u (D,) in `around(u)`, if all rows are
        equal.

        For N rows with mean square s = E‖x‖², float64 sums are exact to max(N, D) ε₆₄ s, as in numpy's `matrix_rank`. Arithmetic in
        a dtype with machine epsilon ε fills a direction to at most (2 ε)² s / D; half precision, which an encoder rounds to once
        behind its last sums, to at most (ε / 2)² s / D. Equal images in other batches differ by at most (8 ε)² s in all directions
        together.
        """
        rows, width = self.counts[1:] if u is None else self.counts, self.second.shape[-1]
        squares = self.second[1].diagonal() if u is None else self.second.diagonal(dim1=1, dim2=2)
        square = (squares.sum() / rows.sum() + (0 if u is None else u.square().sum())).item()
        epsilon = self._precision()
        share = COMPUTED if epsilon <= torch.finfo(torch.float32).eps else ROUNDED
        sums, dtype = max(int(rows.sum()), width) * DOUBLE * square, epsilon**2 * square
        return Rounding(sums + share**2 * dtype / width, sums + BATCHES**2 * dtype)

    def _precision(self) -> float:
        """Returns the machine epsilon of the coarsest dtype in which the rows were computed or kept."""
        halves = [torch.finfo(dtype).eps for dtype, finer in zip(HALVES, self.finer.tolist(), strict=True) if not finer]
        return max([self.epsilon.item(), *halves])

    def around(self, u: Tensor) -> Tensor:
        """Returns the second moment (1 / N) Σ_i (x_i − u)(x_i − u)ᵀ of all rows around u (D,), (D, D)."""
        cross = torch.outer(self.sums.sum(dim=0) / self.counts.sum(), u)
        return self._moment(0, 1) / self.counts.sum() - cross - cross.T + torch.outer(u, u)

    def _moment(self, *places: int) -> Tensor:
        """Returns Σ x xᵀ (D, D) of the rows at some places of `second`."""
        upper = sum(self.second[place] for place in places).triu()
        return upper + upper.triu(1).T

    def _allocate(self, classes: int, width: int, device: torch.device | str) -> None:
        if not self.second.numel():
            self.second = self.second.new_zeros(2, width, width, device=device)
        super()._allocate(max(classes, 1), width, device)

    def _join(self, exchange: Exchange) -> None:
        super()._join(exchange)
        self.epsilon, self.finer = exchange.largest(self.epsilon), exchange.largest(self.finer)

    def _update(self, rows: Outputs) -> None:
        given = [value for value in (rows.features, rows.embeddings, rows.logits) if value is not None]
        self.epsilon = self.epsilon.clamp_min(max(torch.finfo(value.dtype).eps for value in given))
        for place, dtype in enumerate(HALVES):
            if not self.finer[place]:
                self.finer[place] = any((part.to(dtype) != part).any() for part in (given[0][:FEW], given[0]))
        super()._update(rows)

    def _values(self, rows: Outputs) -> Tensor:
        return in_space(rows, self.space, self.beta)

    def _places(self, rows: Outputs) -> Tensor:
        if rows.labels is None:
            return torch.zeros(len(rows), dtype=torch.int64)
        return rows.labels.clamp_min(-1) + 1

    def _add(self, values: Tensor, classes: Tensor) -> None:
        super()._add(values, classes)
        for second, chosen in zip(self.second, (classes == 0, classes > 0), strict=True):
            if chosen.any():
                x = values if chosen.all() else values[chosen]
                for start in range(0, x.shape[1], STRIP):  # half the products, since it is symmetric
                    right = x[:, start:]
                    second[start : start + STRIP, start:].addmm_(right[:, :STRIP].T, right)  # (S, n) @ (n, D − start)


def _one_place(rows: Outputs) -> Tensor:
    return torch.ones(len(rows), dtype=torch.int64)


def in_space(rows: Outputs, space: str, beta: float = 0.0) -> Tensor:
    """Returns the features or logits x of some images (n, D), with any other beta than 0 as x / ‖x‖^beta in float64.

    A beta of 1 puts them on the unit sphere. ‖x‖ counts as at least 1e-12.
    """
    values = getattr(rows, space)
    if not beta:
        return values
    values = values.double()
    return values / values.norm(dim=1, keepdim=True).clamp_min(1e-12) ** beta
