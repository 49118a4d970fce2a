"""Confidence intervals of metrics in [0, 1], near 1 and with few images too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean

from clip_ood.metrics.influence import Influence, standard_error

LEVEL = 0.95
FEW = 8  # added to the number of images that take something from the metric
ROUNDING = 1e-12  # a standard error below it is none


def interval(of_seed: Sequence[Influence], level: float = LEVEL) -> tuple[float, float] | None:
    """Returns the interval of the mean θ over J seeds of an AUROC or average precision; None where a set has one distinct image.

    On the logit scale, logit θ ± z / √(n θ (1 − θ)); at θ = 0 or 1, Wilson's interval of n trials. n is the effective number of
    images, 1 / n = s² / (θ (1 − θ)) + δ / (k + 8), with s the `standard_error`, k the effective number of images that take something
    from the metric (`Influence.misplaced`), and δ the most that a single image can take from it (`Influence.largest`).

    Where many images are misplaced it is DeLong's interval on the logit scale. Near perfect separation s comes from a few images, or
    is 0: then an image in the worst place may have been missed, which the second term allows for. The 8 was chosen on normal
    scores of equal and unequal spread; `make bench-statistics` prints what is covered there and elsewhere.
    """
    value, error = fmean(each.value for each in of_seed), standard_error(of_seed)
    if math.isinf(error):
        return None
    z = NormalDist().inv_cdf((1 + level) / 2)
    k = 0.0 if error < ROUNDING else min(each.misplaced for each in of_seed)
    inside = value * (1 - value)
    missed = max(max(each.largest) for each in of_seed) / (k + FEW)
    if inside <= ROUNDING:
        return wilson(round(value), 1 / missed, z)
    logit, margin = math.log(value / (1 - value)), z * math.sqrt((error**2 / inside + missed) / inside)
    return _logistic(logit - margin), _logistic(logit + margin)


def wilson(share: float, n: float, z: float) -> tuple[float, float]:
    """Returns Wilson's interval of a share of n trials, for the normal quantile z.

    References: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.

    >>> [round(end, 3) for end in wilson(1, 10, 1.96)]
    [0.722, 1.0]
    """
    centre, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    return max(0.0, low), min(1.0, high)


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
