"""One thing that can go wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Trial:
    """`run(folder)` works in an empty folder. Raises: AssertionError where something was lost, hung or ended in a traceback."""

    name: str  # what is done, in words
    run: Callable[[Path], None]
    sample: bool = False  # whether every run of the tests tries it, too
