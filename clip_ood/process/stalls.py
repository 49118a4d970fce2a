"""Limits how long a run waits for what may never come: an image from a disk that hangs, or another process that has died."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from os import PathLike
from typing import TypeVar

from clip_ood.errors import UserError

Answer = TypeVar("Answer")

TICK = 0.5  # seconds between two looks
LIMIT = 1800.0  # seconds, as torch waits for another process

_limit = LIMIT
_readings: dict[int, tuple[float, str | PathLike[str]]] = {}  # when it began, by thread


if hasattr(os, "register_at_fork"):  # a process has none of the threads of the one that it was forked from
    os.register_at_fork(after_in_child=_readings.clear)


def wait_at_most(seconds: float) -> None:
    """Sets how long this process, and those that it starts to decode images, wait."""
    global _limit
    _limit = seconds


def limit() -> float:
    """Returns the limit in seconds."""
    return _limit


@contextmanager
def reading(path: str | PathLike[str]) -> Iterator[None]:
    """Wraps the reading of a file or folder: if it takes longer than the limit, the watch ends the command
    (`clip_ood.process.watch`).
    """
    thread = threading.get_ident()
    before, _readings[thread] = _readings.get(thread), (time.monotonic(), path)
    try:
        yield
    finally:
        if before is None:
            _readings.pop(thread, None)
        else:
            _readings[thread] = before


def overdue() -> str | None:
    """Returns a message that names what is being read for longer than the limit, or None."""
    oldest = min(list(_readings.values()), key=lambda each: each[0], default=None)
    if oldest is None or time.monotonic() - oldest[0] < _limit:
        return None
    return f"{oldest[1]} cannot be read: nothing has come for {_limit:g} s, so the disk or network behind it hangs. {LONGER}"


def begun(work: Callable[[], Answer]) -> Future[Answer]:
    """Begins work in a thread that ends with the process at the latest, so that nobody need wait for it."""
    answer: Future[Answer] = Future()

    def do() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=do, daemon=True).start()
    return answer


def attended(work: Callable[[], Answer]) -> Answer:
    """Returns what `work` does in a thread, for a process without a watch. Raises: UserError for a read that takes longer than the limit."""
    answer = begun(work)
    while not wait([answer], TICK).done:
        if late := overdue():
            raise UserError(late)
    return answer.result()


LONGER = "A longer wait is set by --timeout=SECONDS."
