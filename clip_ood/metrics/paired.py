"""Differences between two detectors on the same images, or between two methods on the same seeds, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

from clip_ood.metrics.placements import Placed, standard_error
from clip_ood.metrics.seeds import seed_margin


@dataclass(frozen=True)
class Difference:
    """Second minus first, with the ends of its 95 % interval; an order is claimed only where that excludes 0.

    `std` is the standard deviation of the difference over seeds, None where there is a single one.
    """

    value: float
    low: float
    high: float
    std: float | None = None

    @property
    def claimed(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Line:
    """One detector on one OOD set: the AUROC of several runs, and the difference of every later one to the first; means over
    `seeds` seeds."""

    detector: str
    ood: str
    aurocs: list[float]
    differences: list[Difference]
    seeds: int = 1


def auroc_difference(first: Sequence[Placed], second: Sequence[Placed]) -> Difference:
    """Difference of AUROCs of two scores of the same images, their mean over J seeds, with an interval over the images.

    value ± z₀.₉₇₅ · standard error, that of `standard_error` of the differences of the images' contributions: DeLong's
    paired interval for J = 1, and for J > 1 that of each image's mean over the seeds.

    Args:
        first, second: a `Placed` a seed, the images in the same order in both.

    References:
        DeLong, DeLong & Clarke-Pearson, Biometrics 1988.
    """
    pairs = [b - a for a, b in zip(first, second, strict=True)]
    value, margin = fmean(pair.auroc for pair in pairs), NormalDist().inv_cdf(0.975) * standard_error(pairs)
    std = stdev(pair.auroc for pair in pairs) if len(pairs) > 1 else None
    return Difference(value, value - margin, value + margin, std)


def seed_difference(first: Sequence[float], second: Sequence[float], test_to_train: float) -> Difference:
    """Mean difference over J ≥ 2 seeds that divide one pool of images, each seed a pair: ± `seed_margin`.

    Raises: ValueError for fewer than two pairs.
    """
    pairs = [b - a for a, b in zip(first, second, strict=True)]
    value, margin = fmean(pairs), seed_margin(pairs, test_to_train)
    return Difference(value, value - margin, value + margin, stdev(pairs))
