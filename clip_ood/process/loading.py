"""Loads what a command needs without the garbage collector, which otherwise looks for garbage among all modules a dozen times."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """For the imports of torch and what needs it, the first time in a process. What they have made stays: later collections pass it
    over, too.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
