"""Reads ahead: while one thing is worked at, threads wait for the next ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from clip_ood.files.remote.file_systems import AT_ONCE

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


def ahead(ask: Callable[[Asked], Answer], things: Iterable[Asked], at_once: int = AT_ONCE) -> Iterator[Answer]:
    """Yields `ask` of each thing, in their order, as `map` does; so many are asked for at the same time.

    >>> list(ahead(str.upper, "abc"))
    ['A', 'B', 'C']
    """
    begun: deque[Future] = deque()
    pool = ThreadPoolExecutor(at_once, "ahead")
    try:
        for each in things:
            begun.append(pool.submit(ask, each))
            if len(begun) == at_once:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
