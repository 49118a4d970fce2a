"""Measured against bare loops and naive code, as ratios in one run: `make bench`, or one part: `python -m bench.rmd`.

With `--tiny` a part goes through all its code in a moment; what it prints then measures nothing.
"""

import sys
from typing import TypeVar

T = TypeVar("T")


def chosen(full: T, tiny: T) -> T:
    """Returns the sizes that the command line asks for."""
    return tiny if "--tiny" in sys.argv[1:] else full
