"""Fits a straight line through points."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import StatisticsError, correlation, linear_regression

FEWEST = 5  # points for which an R² is meaningful


@dataclass(frozen=True)
class Fit:
    """The line y = intercept + slope · x by least squares; r2 is the share of y's variance that it explains."""

    slope: float
    intercept: float
    r2: float


def least_squares(x: list[float], y: list[float]) -> Fit | None:
    """Returns the line through n points, or None below 5 points, or if x or y does not vary."""
    if len(x) < FEWEST:
        return None
    try:
        slope, intercept = linear_regression(x, y)
        return Fit(slope, intercept, correlation(x, y) ** 2)
    except StatisticsError:
        return None
