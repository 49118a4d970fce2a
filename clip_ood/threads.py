"""Has small computations take one thread, since several would wait for each other after every step.

Where other programs use the same cores, such a wait is as long as their turn, some milliseconds: with two threads on two busy cores, a
step that takes half a millisecond has taken fifty, and an eigendecomposition of a tenth of a second eleven seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread(small: bool = True) -> Iterator[None]:
    """Has torch compute with one thread in the block, or in the function that this decorates, and afterwards with as many as before.

    Where the computation is not `small`, nothing changes.
    """
    threads = torch.get_num_threads()
    if not small or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
