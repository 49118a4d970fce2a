"""From scores of held-out ID images to p-values and a threshold: split conformal calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Any

import torch
from torch import Tensor

from clip_ood.errors import UserError


@dataclass(frozen=True)
class Calibration:
    """The scores (n,) of n ID images that nothing was fitted on; higher = more in-distribution.

    A new ID image, drawn as they were, is flagged with probability at most α, whatever the score's distribution
    (Vovk et al. 2005; Bates et al. 2023, arXiv 2104.08279). α = 1 − accept.

    >>> calibration = Calibration(torch.arange(19.0))
    >>> calibration.p_values(torch.tensor([-1.0, 0.0, 18.0]))
    tensor([0.0500, 0.1000, 1.0000], dtype=torch.float64)
    >>> calibration.threshold(0.95), calibration.expected(0.95)
    (0.0, 0.95)
    """

    scores: Tensor

    def __post_init__(self) -> None:
        if self.scores.isnan().any():
            raise UserError("calibration: scores hold NaN")
        object.__setattr__(self, "scores", self.scores.sort().values)

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
        """The share of new ID images expected to be accepted, 1 − ⌊α(n + 1)⌋ / (n + 1), where no two scores are equal.

        Raises: ValueError where n is too small for α.
        """
        return float(1 - Fraction(self._rank(accept), len(self) + 1))

    def _rank(self, accept: float) -> int:
        if (rank := floor(_alpha(accept) * (len(self) + 1))) < 1:
            raise UserError(
                f"Accepting {100 * accept:g} % of ID images takes {needed(accept)} ID val images or more to calibrate on, "
                f"and there are {len(self)}: hold out more (data.splits.val, data.id.val), or accept fewer"
            )
        return rank


def needed(accept: float) -> int:
    """The fewest calibration scores that a threshold for `accept` takes: 19 for 95 %, 99 for 99 %."""
    return ceil(1 / _alpha(accept)) - 1


def summary(scores: Mapping[str, Tensor], accept: float) -> dict[str, Any]:
    """What a run states of its calibration, from the scores (n,) by detector: n, accept, needed, the default detector (the
    first), and the expected acceptance and thresholds by detector, None both where n is below what is needed."""
    calibrations = {name: Calibration(values) for name, values in scores.items()}
    default, first = next(iter(calibrations.items()))
    stated = {"n": len(first), "accept": accept, "needed": needed(accept), "default": default}
    stated |= {"expected": None, "thresholds": None}
    if len(first) >= stated["needed"]:
        stated["expected"] = first.expected(accept)
        stated["thresholds"] = {name: each.threshold(accept) for name, each in calibrations.items()}
    return stated


def _alpha(accept: float) -> Fraction:
    """1 − accept as it is written: 1 − 0.9 is not a tenth in floating point."""
    if not (isinstance(accept, int | float) and 0 < accept < 1):  # a text such as 1e400000000 would fill the memory
        raise UserError(f"accept = {str(accept)[:20]} must lie between 0 and 1")
    return 1 - Fraction(str(accept))
