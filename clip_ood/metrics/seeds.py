"""How far the mean over seeds may be off, where every seed divides the same images anew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev

# Quantiles 0.975 of Student's t for 1 … 20 degrees of freedom.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
T_975 += (2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)


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
    return student_975(len(values) - 1) * stdev(values) * math.sqrt(1 / len(values) + test_to_train)


def student_975(freedom: int) -> float:
    """The 0.975 quantile of Student's t, to 0.005."""
    return T_975[freedom - 1] if freedom <= len(T_975) else 1.96 + 2.45 / freedom
