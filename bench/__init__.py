"""Measured against bare loops and naive code, as ratios in one run: `make bench`, or one part: `python -m bench.rmd`.

With `--tiny` a part goes through all its code in a moment; what it prints then measures nothing.
"""

import sys
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Any, TypeVar

T = TypeVar("T")


def chosen(full: T, tiny: T) -> T:
    """Returns the sizes that the command line asks for."""
    return tiny if "--tiny" in sys.argv[1:] else full


def seconds(function: Callable[..., object], *arguments: Any, clock: Callable[[], float] = perf_counter) -> float:
    """Returns how long a call takes."""
    start = clock()
    function(*arguments)
    return clock() - start


def spread(ratios: Sequence[float], form: str = ".2f") -> str:
    """Returns the median of ratios, and the least and the greatest of them: 1.12 (1.00–1.25)."""
    return f"{median(ratios):{form}} ({min(ratios):{form}}–{max(ratios):{form}})"
