"""Divides the work among threads such that they rarely wait for each other: small computations take one, and of large ones each takes
parts of its own.

Torch's own threads wait for each other after every operation. Where other programs use the same cores, such a wait is as long as their
turn, some milliseconds: with two threads on two busy cores, a step that takes half a millisecond has taken fifty, and an
eigendecomposition of a tenth of a second eleven seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, local
from typing import TypeVar

import torch

T = TypeVar("T")
_mine = local()  # of a thread that works for `side_by_side`: the event that its work is no longer wanted


class Abandoned(Exception):
    """The work of a thread is no longer wanted."""


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


def side_by_side(work: Callable[[T], None], parts: Sequence[T]) -> None:
    """Does the work on every part, on as many at a time as torch has threads, which they share; afterwards torch has as many as before.

    The work is done without autograd. Raises what the work raises, of the first part where it does. After an error or an interruption the
    other threads end their parts, or give them up where they call `check_wanted`.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(parts))
    if workers <= 1:
        for part in parts:
            work(part)
        return
    inference = torch.is_inference_mode_enabled()  # which every thread has for itself, as its number of threads
    over = Event()

    def alone(part: T) -> None:
        _mine.over = over
        torch.set_num_threads(threads // workers)
        with torch.inference_mode(inference), torch.no_grad():
            work(part)

    try:
        with ThreadPoolExecutor(workers) as pool:
            try:
                for _ in pool.map(alone, parts):
                    pass
            except BaseException:
                over.set()
                raise
    finally:  # where torch is built without OpenMP, the number is one for all threads
        torch.set_num_threads(threads)


def check_wanted() -> None:
    """Raises Abandoned in a thread of `side_by_side` whose work is no longer wanted; elsewhere it does nothing."""
    if (over := getattr(_mine, "over", None)) is not None and over.is_set():
        raise Abandoned
