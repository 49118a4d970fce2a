"""Differences between two detectors on the same images, or between two methods on the same seeds, with intervals and tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, fmean, stdev

from clip_ood.metrics.influence import Influence, standard_error
from clip_ood.metrics.seeds import seed_error, student_975, student_tails

ALPHA = 0.05  # of all the claims of one table together


@dataclass(frozen=True)
class Difference:
    """Second minus first, with the ends of its own 95 % interval and the p-value of no difference.

    `corrected` is the p-value for all differences of a table together (see `holm`), p itself for a single one: an order is claimed
    where it is at most 0.05. `std` is the standard deviation of the difference over seeds, None where there is a single one.
    """

    value: float
    low: float
    high: float
    std: float | None = None
    p: float = 1.0
    corrected: float | None = None

    @property
    def claimed(self) -> bool:
        """Whether the corrected test finds a difference."""
        return (self.p if self.corrected is None else self.corrected) <= ALPHA


@dataclass(frozen=True)
class Line:
    """One detector on one OOD set: the AUROC of several runs, and the difference of every later one to the first; means over
    `seeds` seeds."""

    detector: str
    ood: str
    aurocs: list[float]
    differences: list[Difference]
    seeds: int = 1


def auroc_difference(first: Sequence[Influence], second: Sequence[Influence]) -> Difference:
    """Returns the difference of AUROCs of two scores of the same images, their mean over J seeds, with an interval over the images.

    value ± z₀.₉₇₅ · standard error, that of `standard_error` of the differences of the images' influences, and the normal test of 0:
    DeLong's paired interval and test for J = 1, and for J > 1 those of each image's mean over the seeds.

    Args:
        first, second: an `Influence` a seed, the images in the same order in both.

    References:
        DeLong, DeLong & Clarke-Pearson, Biometrics 1988.
    """
    pairs = [b - a for a, b in zip(first, second, strict=True)]
    value, error = fmean(pair.value for pair in pairs), standard_error(pairs)
    margin = NormalDist().inv_cdf(0.975) * error
    std = stdev(pair.value for pair in pairs) if len(pairs) > 1 else None
    p = math.erfc(abs(value) / error / math.sqrt(2)) if error else float(value == 0)
    return Difference(value, value - margin, value + margin, std, p)


def seed_difference(first: Sequence[float], second: Sequence[float], test_to_train: float) -> Difference:
    """Returns the mean difference over J ≥ 2 seeds that divide one pool of images, each seed a pair: ± `seed_margin`, and the t-test
    that belongs to it.

    Raises: ValueError for fewer than two pairs.
    """
    pairs = [b - a for a, b in zip(first, second, strict=True)]
    if len(pairs) < 2:
        raise ValueError(f"a difference over seeds needs two seeds or more, got {len(pairs)}")
    value, error, freedom = fmean(pairs), seed_error(pairs, test_to_train), len(pairs) - 1
    margin = student_975(freedom) * error
    p = student_tails(value / error, freedom) if error else float(value == 0)
    return Difference(value, value - margin, value + margin, stdev(pairs), p)


def holm(lines: Sequence[Line]) -> list[Line]:
    """Returns the lines with p-values that are corrected for all differences among them: with m of them, the i-th smallest p becomes
    the largest of (m − j + 1) p_j over j ≤ i, at most 1. Then at most 5 % of tables without any difference claim one.

    References: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 1979.
    """
    places = [(line, place) for line, each in enumerate(lines) for place in range(len(each.differences))]
    places.sort(key=lambda at: lines[at[0]].differences[at[1]].p)
    corrected, highest = {}, 0.0
    for done, (line, place) in enumerate(places):
        highest = max(highest, min(1.0, (len(places) - done) * lines[line].differences[place].p))
        corrected[line, place] = highest
    return [
        replace(
            each, differences=[replace(one, corrected=corrected[line, k]) for k, one in enumerate(each.differences)]
        )
        for line, each in enumerate(lines)
    ]
