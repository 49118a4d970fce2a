"""Differences between two detectors on the same images, or between two methods on the same seeds, with intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

import torch
from torch import Tensor

# Quantiles 0.975 of Student's t for 1 … 20 degrees of freedom.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
T_975 += (2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)


@dataclass(frozen=True)
class Difference:
    """Second minus first, with the ends of its 95 % interval; an order is claimed only where that excludes 0."""

    value: float
    low: float
    high: float

    @property
    def claimed(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Line:
    """One detector on one OOD set: the AUROC of several runs, and the difference of every later one to the first."""

    detector: str
    ood: str
    aurocs: list[float]
    differences: list[Difference]


def placements(id_scores: Tensor, ood_scores: Tensor) -> tuple[Tensor, Tensor]:
    """V_id (M,): the share of OOD images that each ID image beats; V_ood (N,): the share of ID images that beat each
    OOD image; ties counted half. Both have the AUROC as their mean.

    >>> placements(torch.tensor([3.0, 2.0]), torch.tensor([2.0, 1.0]))
    (tensor([1.0000, 0.7500], dtype=torch.float64), tensor([0.7500, 1.0000], dtype=torch.float64))
    """
    id_scores, ood_scores = id_scores.double(), ood_scores.double()
    return _share_below(id_scores, ood_scores), 1 - _share_below(ood_scores, id_scores)


def auroc_difference(first: tuple[Tensor, Sequence[Tensor]], second: tuple[Tensor, Sequence[Tensor]]) -> Difference:
    """Difference of AUROCs, averaged over K OOD sets, of two scores of the same images (DeLong's paired interval).

    With d_id (M,) the difference of the placements of an ID image, averaged over the sets, and d_k (N_k,) that of the
    OOD images of set k: value = mean(d_id), variance = var(d_id) / M + Σ_k var(d_k) / (K² N_k).

    Args:
        first, second: ID scores (M,) and, for each set, OOD scores (N_k,), the images in the same order in both.

    References:
        DeLong, DeLong & Clarke-Pearson, Biometrics 1988.
    """
    differences = [
        [b - a for a, b in zip(placements(first[0], x), placements(second[0], y), strict=True)]
        for x, y in zip(first[1], second[1], strict=True)
    ]
    of_id = torch.stack([d_id for d_id, _ in differences]).mean(dim=0)
    sets = len(differences)
    variance = _variance_of_mean(of_id) + sum(_variance_of_mean(d) for _, d in differences) / sets**2
    value, margin = of_id.mean().item(), NormalDist().inv_cdf(0.975) * math.sqrt(variance)
    return Difference(value, value - margin, value + margin)


def seed_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Mean difference over n ≥ 2 seeds, each a pair: ± t₀.₉₇₅(n − 1) · s / √n.

    Raises: ValueError for fewer than two pairs.
    """
    pairs = [b - a for a, b in zip(first, second, strict=True)]
    if len(pairs) < 2:
        raise ValueError(f"an interval over seeds needs two seeds or more, got {len(pairs)}")
    margin = student_975(len(pairs) - 1) * stdev(pairs) / math.sqrt(len(pairs))
    return Difference(fmean(pairs), fmean(pairs) - margin, fmean(pairs) + margin)


def student_975(freedom: int) -> float:
    """The 0.975 quantile of Student's t, to 0.005."""
    return T_975[freedom - 1] if freedom <= len(T_975) else 1.96 + 2.45 / freedom


def _share_below(values: Tensor, others: Tensor) -> Tensor:
    ordered = others.sort().values
    below = torch.searchsorted(ordered, values, right=False)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to).double() / (2 * len(others))


def _variance_of_mean(values: Tensor) -> float:
    return math.inf if len(values) < 2 else (values.var() / len(values)).item()
