"""How far the mean over seeds may be off, where every seed divides the same images anew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import stdev


def seed_margin(values: Sequence[float], test_to_train: float) -> float:
    """Half the 95 % interval of the mean of J values, one a seed: t₀.₉₇₅(J − 1) · s · √(1/J + n_test / n_train).

    s is the standard deviation of the values. The second term stands for what the seeds share: they divide one pool, so
    that more of them bring no more images, and the interval never falls below t · s · √(n_test / n_train).

    Args:
        values: J ≥ 2 values, or differences of two methods on the same seeds.
        test_to_train: n_test / n_train, the numbers of images that each division tests and trains on. A method that
            learns from a part of the n_train alone has the same n_train.

    Raises: ValueError for fewer than two values.

    References:
        Nadeau & Bengio, "Inference for the Generalization Error", Machine Learning 2003.

    Example:
        >>> round(seed_margin([0.80, 0.84, 0.82], test_to_train=46 / 77), 4)
        0.083
    """
    if len(values) < 2:
        raise ValueError(f"an interval over seeds needs two seeds or more, got {len(values)}")
    return student_975(len(values) - 1) * seed_error(values, test_to_train)


def seed_error(values: Sequence[float], test_to_train: float) -> float:
    """The standard error s · √(1/J + n_test / n_train) of the mean of J ≥ 2 values; arguments as `seed_margin`."""
    return stdev(values) * math.sqrt(1 / len(values) + test_to_train)


def student_tails(t: float, freedom: int) -> float:
    """The probability that Student's t is further from 0 than t, on either side: the finite sums for whole degrees of freedom.

    References: Abramowitz & Stegun, "Handbook of Mathematical Functions", 1964, 26.7.3 and 26.7.4.

    >>> round(student_tails(12.706, 1), 4), round(student_tails(2.228, 10), 4)
    (0.05, 0.05)
    """
    angle = math.atan2(abs(t), math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    term = total = cosine if freedom % 2 else 1.0
    for step in range(2 + freedom % 2, freedom - 1, 2):
        term *= cosine**2 * (step - 1) / step
        total += term
    inside = sine * total if freedom > 1 else 0.0
    return max(0.0, 1 - (2 / math.pi * (angle + inside) if freedom % 2 else inside))


@cache
def student_975(freedom: int) -> float:
    """The 0.975 quantile of Student's t, by halving."""
    low, high = 0.0, 13.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if student_tails(middle, freedom) > 0.05 else (low, middle)
    return high
