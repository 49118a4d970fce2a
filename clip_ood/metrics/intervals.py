"""Confidence intervals of metrics in [0, 1], near 1 and with few images too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean

from clip_ood.metrics.influence import Influence, standard_error

LEVEL = 0.95
FEW, UNEVEN = 12, 0.25  # constants of `missed`
ROUNDING = 1e-12  # a standard error below it is none


def interval(of_seed: Sequence[Influence], level: float = LEVEL) -> tuple[float, float] | None:
    """Returns the interval of the mean θ over J seeds of an AUROC or average precision; None where a set has one distinct image.

    On the logit scale, logit θ ± z / √(n θ (1 − θ)); at θ = 0 or 1, Wilson's interval of n trials. n is the effective number of
    images, 1 / n = s² / (θ (1 − θ)) + what may have been `missed`, with s the `standard_error`. Where many images are misplaced it is
    DeLong's interval on the logit scale. Near perfect separation s comes from a few images, or is 0.
    """
    value, error = fmean(each.value for each in of_seed), standard_error(of_seed)
    if math.isinf(error):
        return None
    z = NormalDist().inv_cdf((1 + level) / 2)
    inside = value * (1 - value)
    extra = missed(of_seed, error)
    if inside <= ROUNDING:
        return wilson(round(value), 1 / extra, z)
    logit, margin = math.log(value / (1 - value)), z * math.sqrt((error**2 / inside + extra) / inside)
    return _logistic(logit - margin), _logistic(logit + margin)


def missed(of_seed: Sequence[Influence], error: float) -> float:
    """Returns what a sample does not show of the spread: the larger one, of ID and OOD images, of δ / (k + 12) · max(1, (K + 1) / (k + 1))^¼.

    δ is the most that one of these images can take from the metric (`Influence.largest`), k the effective number of those that take
    something from it (`Influence.misplaced`), and K that of the others. A large K beside a small k comes from scores that spread
    unevenly, where an image in the worst place is likelier. If no image is misplaced, it is the larger δ, and the interval that of a
    share of 1 among 1 / δ images. The constants were chosen on normal scores of equal and unequal spread; `make bench-statistics` prints
    what is covered there and elsewhere.
    """
    largest = [max(each.largest[side] for each in of_seed) for side in (0, 1)]
    fewest = [min(each.misplaced[side] for each in of_seed) for side in (0, 1)]
    if min(fewest) == 0 or error < ROUNDING:
        return max(largest)
    sides = zip(largest, fewest, fewest[::-1], strict=True)
    return max(most / (k + FEW) * max(1.0, (others + 1) / (k + 1)) ** UNEVEN for most, k, others in sides)


def wilson(share: float, n: float, z: float) -> tuple[float, float]:
    """Returns Wilson's interval of a share of n trials, for the normal quantile z.

    References: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.

    >>> [round(end, 3) for end in wilson(1, 10, 1.96)]
    [0.722, 1.0]
    """
    centre, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    return low if share > 0 else 0.0, high if share < 1 else 1.0  # which rounding may miss


def share_interval(count: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Returns the interval of a share, `count` of n images: Wilson's, with the ends of one to three counts (or missing ones) moved out to
    the Poisson limit, where Wilson's covers too little.

    References: Brown, Cai & DasGupta, "Interval Estimation for a Binomial Proportion", Statistical Science 2001.

    >>> [round(end, 4) for end in share_interval(1, 100)], round(wilson(0.01, 100, 1.96)[0], 4)
    ([0.0005, 0.0545], 0.0018)
    """
    low, high = wilson(count / n, n, NormalDist().inv_cdf((1 + level) / 2))
    if 1 <= count <= 3:
        low = min(low, _least(count, 1 - level) / n)
    if 1 <= n - count <= 3:
        high = max(high, 1 - _least(n - count, 1 - level) / n)
    return low, high


def clopper_pearson(count: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Returns the exact interval of a share, `count` of n ≥ 1 independent draws: it covers at least `level` whatever the share is.

    Its ends are the shares p for which P(X ≥ count) and P(X ≤ count), X ~ Binomial(n, p), are (1 − level) / 2.
    References: Clopper & Pearson, "The Use of Confidence or Fiducial Limits", Biometrika 1934.

    >>> [round(end, 4) for end in clopper_pearson(0, 10)], [round(end, 4) for end in clopper_pearson(3, 20)]
    ([0.0, 0.3085], [0.0321, 0.3789])
    """
    from scipy.special import betaincinv  # takes a tenth of a second

    tail = (1 - level) / 2
    low = betaincinv(count, n - count + 1, tail) if count else 0.0
    high = betaincinv(count + 1, n - count, 1 - tail) if count < n else 1.0
    return float(low), float(high)


def share_told(count: int, n: int) -> str:
    """Returns a share of n images in words, with its interval by `clopper_pearson`.

    >>> share_told(3, 20)
    '3 of 20, 15.0 % (95 % interval by Clopper and Pearson: 3.2 to 37.9 %)'
    """
    return f"{count:,} of {n:,}, {100 * count / n:.1f} % ({interval_told(count, n)})"


def interval_told(count: int, n: int) -> str:
    """Returns the interval of `clopper_pearson` in words."""
    low, high = clopper_pearson(count, n)
    return f"95 % interval by Clopper and Pearson: {100 * low:.1f} to {100 * high:.1f} %"


def _least(count: int, tail: float) -> float:
    """The Poisson mean that gives `count` or more with the probability `tail`, by halving."""
    low, high = 0.0, float(count)
    for _ in range(50):
        mean = (low + high) / 2
        fewer = math.exp(-mean) * sum(mean**k / math.factorial(k) for k in range(count))
        low, high = (mean, high) if 1 - fewer < tail else (low, mean)
    return mean


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
