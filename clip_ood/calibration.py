"""From scores of ID images that a detector has not seen to p-values and a threshold: conformal calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from math import ceil, floor
from statistics import NormalDist, fmean
from typing import Any, Literal

import torch
from torch import Tensor

from clip_ood.errors import UserError

DRAWS = 4_000_000  # normal numbers of a simulation
MANY = 5000  # images: more of them choose as infinitely many would
By = Literal["split", "leave_one_out", "approximate"]
MORE = "data.splits.val or data.id.val; with evaluation.cross_fit and no ID val, data.id"  # the keys that give more to calibrate on
ROUNDING = 1e-12  # by which a p-value may exceed its limit: equal fractions differ by this in floating point


@dataclass(frozen=True)
class Choice:
    """How a detector was chosen by the very ID images that calibrate it.

    Attributes:
        candidates: among how many.
        auroc: that of the chosen one, of these ID images against OOD images.
        images: the number of these OOD images; None if it was chosen by something else, as the head of a sweep by its accuracy.
    """

    candidates: int
    auroc: float = 0.9
    images: int | None = None


@dataclass(frozen=True)
class Calibration:
    """The scores (n,) of n ID images by what has not seen them; higher = more in-distribution. `choice`: what they chose, if any;
    `classes` (n,) int64: those that were predicted for them (-1: none), if any were.

    A new ID image, drawn as they were, is flagged with probability at most α, whatever the score's distribution, if nothing was fitted
    on these images (`by` split; Vovk et al. 2005; Bates et al. 2023, arXiv 2104.08279). α = 1 − accept.

    So it is if they are the bank of a k-NN search, and each was scored without itself (`by` leave_one_out): with the new image in the
    bank too, all n + 1 scores would be exchangeable, and those of the n images could only be higher than they are, so that the p-value
    is at least that of full conformal prediction. With k = 1 it equals it: what the new image could raise above its own score s is
    above s already.

    If the detector was fitted on the other folds for each image, and then on all of them (`by` approximate), nothing is proven, and
    `make bench-statistics` simulates what is accepted.

    >>> calibration = Calibration(torch.arange(19.0))
    >>> calibration.p_values(torch.tensor([-1.0, 0.0, 18.0]))
    tensor([0.0500, 0.1000, 1.0000], dtype=torch.float64)
    >>> calibration.threshold(0.95), calibration.expected(0.95)
    (0.0, 0.95)
    """

    scores: Tensor
    choice: Choice | None = None
    by: By = "split"
    classes: Tensor | None = None

    def __post_init__(self) -> None:
        if self.scores.isnan().any():
            raise UserError("calibration: scores hold NaN")
        scores, order = self.scores.sort()
        object.__setattr__(self, "scores", scores)
        if self.classes is not None:
            object.__setattr__(self, "classes", self.classes[order])

    def __len__(self) -> int:
        return len(self.scores)

    def p_values(self, scores: Tensor) -> Tensor:
        """p = (1 + number of calibration scores ≤ s) / (n + 1) of each score s: (N,) -> (N,) float64."""
        below = torch.searchsorted(self.scores, scores.to(self.scores.dtype).contiguous(), right=True)
        return (1 + below).double() / (len(self) + 1)

    def threshold(self, accept: float) -> float:
        """The ⌊α(n + 1)⌋-th smallest calibration score: p ≤ α for the scores below it, and for no other.

        Raises: ValueError where n is too small for α.
        """
        return self.scores[self._rank(accept) - 1].item()

    def expected(self, accept: float) -> float:
        """Returns the share of new ID images expected to be accepted.

        It is 1 − ⌊α(n + 1)⌋ / (n + 1) if no two scores are equal. If the detector was chosen by these images, their scores are too
        high, and it is about what `after_choice` finds. Raises: UserError if n is too small for α.
        """
        if self.choice is not None:
            return after_choice(len(self), self._rank(accept), self.choice)
        return float(1 - Fraction(self._rank(accept), len(self) + 1))

    def by_class(self, accept: float) -> dict[int, Calibration]:
        """Returns the calibration by the images of each predicted class that has enough of them; none where classes are not known.

        Among new ID images that are predicted as the class, at most α are flagged (a Mondrian taxonomy; Vovk et al. 2005), if it is known
        beforehand what predicts classes and nothing was fitted on these images.
        """
        if self.classes is None:
            return {}
        counts = self.classes[self.classes >= 0].bincount()
        enough = (counts >= needed(accept)).nonzero().flatten().tolist()
        return {label: replace(self, scores=self.scores[self.classes == label], classes=None) for label in enough}

    def chance_of_none(self, images: int, accept: float) -> float:
        """Returns the probability that none of m new ID images is flagged: Π_{i < r} (n − i) / (n + m − i), with r = ⌊α(n + 1)⌋.

        For then the r lowest of all n + m scores are calibration scores. Scores may not be equal, nor have chosen the detector.

        >>> round(Calibration(torch.randn(1000)).chance_of_none(100, 0.95), 4)
        0.0076
        """
        return math.prod((len(self) - i) / (len(self) + images - i) for i in range(self._rank(accept)))

    def fewest(self, images: int, fdr: float) -> int:
        """Returns the fewest of m images that `benjamini_hochberg` can flag: ⌈m / (fdr (n + 1))⌉, since no p is below 1 / (n + 1).

        Raises: UserError if these are more than m, so that none can ever be flagged.

        >>> Calibration(torch.randn(31)).fewest(200, 0.1), Calibration(torch.randn(1999)).fewest(200, 0.1)
        (63, 1)
        """
        share = _share("fdr", fdr)
        if (fewest := ceil(images / (share * (len(self) + 1)))) > images:
            raise UserError(
                f"A false discovery rate of {100 * fdr:g} % takes {ceil(1 / share) - 1} ID images or more to calibrate on, and "
                f"there are {len(self)}: take more ({MORE}), or allow a higher rate"
            )
        return fewest

    def false_share(self, images: int, flagged: int, fdr: float) -> float:
        """Returns how large the expected share of ID images is at most among those that `benjamini_hochberg` has flagged.

        It is fdr. If the detector was chosen by the calibration images, p-values of ID images are too low, and it is about
        m (1 − a) / (number flagged): a is the share of ID images above the limit fdr · (number flagged) / m, as `after_choice`
        finds it.
        """
        if self.choice is None or not flagged:
            return fdr
        rank = floor(_share("fdr", fdr) * flagged * (len(self) + 1) / images)
        return min(1.0, images * (1 - after_choice(len(self), rank, self.choice)) / flagged)

    @property
    def claim(self) -> str:
        """Returns the word before `expected`, with a space, or nothing if it is exact."""
        if self.choice is not None or self.by == "approximate":
            return "about "
        return "at least " if self.by == "leave_one_out" else ""

    def _rank(self, accept: float) -> int:
        if (rank := floor(_alpha(accept) * (len(self) + 1))) < 1:
            raise UserError(
                f"Accepting {100 * accept:g} % of ID images takes {needed(accept)} ID images or more to calibrate on, "
                f"and there are {len(self)}: take more ({MORE}), or accept fewer"
            )
        return rank


def needed(accept: float) -> int:
    """The fewest calibration scores that a threshold for `accept` takes: 19 for 95 %, 99 for 99 %."""
    return ceil(1 / _alpha(accept)) - 1


def benjamini_hochberg(p_values: Tensor, fdr: float) -> Tensor:
    """Returns which of m p-values are at most fdr · k / m, for the largest k of which k p-values are: (m,) float64 -> (m,) bool.

    Of the images flagged so, an expected share of at most fdr are ID images (Benjamini and Hochberg 1995), also if all p-values
    are those of one `Calibration` (Bates et al. 2023, arXiv 2104.08279, theorem 2).

    >>> benjamini_hochberg(torch.tensor([0.05, 0.9, 0.04, 0.03], dtype=torch.float64), 0.1)
    tensor([ True, False,  True,  True])
    """
    m, fdr = len(p_values), float(_share("fdr", fdr))
    ordered = p_values.sort().values
    limits = (1 + ROUNDING) * fdr * torch.arange(1, m + 1, dtype=torch.float64) / m
    k = (ordered <= limits).nonzero()
    return p_values <= ordered[k[-1]] if len(k) else torch.zeros_like(p_values, dtype=torch.bool)


@cache
def after_choice(n: int, rank: int, choice: Choice) -> float:
    """Returns the share of new ID images above the `rank`-th smallest of n scores of the best of m candidates, in a simulation.

    The candidates' scores are independent and normal, N(μ, 1) for ID and N(0, 1) for OOD images, with μ such that their AUROC is
    `choice.auroc`; the one with the highest AUROC on n ID and `choice.images` OOD images is chosen. Real candidates resemble each
    other, so that more images are accepted than this says: at most as many as without a choice. Seeded, to about 0.2 points; at most
    1,000 candidates and 5,000 images are drawn, with the rank in proportion.

    >>> choice = Choice(12, 0.9, 100)
    >>> round(after_choice(31, 1, choice), 2), round(after_choice(31, 1, Choice(1)), 2)
    (0.93, 0.97)
    """
    generator = torch.Generator().manual_seed(0)
    normal = torch.distributions.Normal(0.0, 1.0)
    shift = NormalDist().inv_cdf(min(max(choice.auroc, 0.01), 0.999)) * math.sqrt(2)
    many = choice.images is None or choice.images > MANY
    if n > MANY:
        n, rank = MANY, max(1, round(rank * MANY / n))
    candidates = min(choice.candidates, 1000)
    draws = max(50, min(4000, DRAWS // (candidates * (n + (0 if many else choice.images)))))
    accepted = []
    for _ in range(draws):
        inside = torch.randn(candidates, n, generator=generator)
        if many:
            beaten = normal.cdf(inside + shift)
        else:
            outside = torch.randn(candidates, choice.images, generator=generator).sort(dim=1).values
            beaten = torch.searchsorted(outside, inside + shift) / choice.images
        best = inside[beaten.mean(dim=1).argmax()]
        accepted.append(1 - normal.cdf(best.kthvalue(rank).values).item())
    return fmean(accepted)


def summary(calibrations: Mapping[str, Calibration], accept: float) -> dict[str, Any]:
    """Returns what a run states of its calibrations, by detector: n, accept, needed, the default detector (the first), and the
    expected acceptance and thresholds by detector, both None if n is below what is needed. `chosen` has n, the expected acceptance
    and the number of candidates of the detectors that were chosen by images that calibrate them; `claim` is the word before the
    default detector's."""
    default, first = next(iter(calibrations.items()))
    stated = {"n": len(first), "accept": accept, "needed": needed(accept), "default": default}
    stated |= {"expected": None, "thresholds": None}
    if min(map(len, calibrations.values())) >= stated["needed"]:
        stated |= {"expected": first.expected(accept), "claim": first.claim}
        stated["thresholds"] = {name: each.threshold(accept) for name, each in calibrations.items()}
        stated["chosen"] = {
            name: {"n": len(each), "expected": each.expected(accept), "candidates": each.choice.candidates}
            for name, each in calibrations.items()
            if each.choice is not None
        }
    return stated


def _alpha(accept: float) -> Fraction:
    """1 − accept as it is written: 1 − 0.9 is not a tenth in floating point."""
    return 1 - _share("accept", accept)


def _share(name: str, value: float) -> Fraction:
    if not (isinstance(value, int | float) and 0 < value < 1):  # a text such as 1e400000000 would fill the memory
        raise UserError(f"{name} = {str(value)[:20]} must lie between 0 and 1")
    return Fraction(str(value))
