"""Lets a command that serves others end when it is asked to, in its own time and with status 0."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from clip_ood.process.stopping import statuses


@contextmanager
def asked_to_end(tell: Callable[[], None]) -> Iterator[None]:
    """Has signals that would end the command in the main thread call `tell` in the block, each time that one comes.

    The watch over the command (`clip_ood.process.watch`) does not hear them. Signals that are ignored, as under nohup, stay ignored.
    """
    before = {number: signal.getsignal(number) for number in statuses()}
    heard = signal.set_wakeup_fd(-1)
    taken = [number for number in before if before[number] is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, lambda number, frame: tell())
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number] or signal.SIG_DFL)
        signal.set_wakeup_fd(heard, warn_on_full_buffer=False)
