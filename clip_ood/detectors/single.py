"""What detectors have learnt as float64 numbers that float32 can hold, so that a folder keeps it in half the space, unchanged."""

from __future__ import annotations

import torch
from torch import Tensor


def single(value: Tensor) -> Tensor:
    """Returns float64 values rounded to float32, by at most 6e-8 of each, and still in float64, in which scores are computed.

    It belongs at the end of a fit, before the first score: then a saved detector gives the scores of the evaluation. Numbers
    that others are computed from are rounded before these.
    """
    return value.to(torch.float32, memory_format=torch.contiguous_format).double()
