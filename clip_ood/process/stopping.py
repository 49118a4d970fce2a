"""Ends a command before its time: because of a signal, a process of the run that died, or a read that stalls.

A file that is being written is completed first. Then every process of the run ends, and one line says why and how to go on.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from clip_ood.process.ranks import is_first
from clip_ood.terminal.shown import say, without_token

FAILED = 2  # the exit status of an error that a message explains
TERMINATED = 128 + signal.SIGTERM


class Stopped(SystemExit):
    """Ends a command from within; its code is the exit status."""


@dataclass
class Ending:
    """How this process ends before its time, if it does: the exit `status`, `why`, and `since` when.

    `writing` counts files that must be completed first, `answered` says that the main thread ends by itself, and `way_on` gives
    what is kept and how to go on.
    """

    status: int | None = None
    why: str = ""
    since: float = 0.0
    writing: int = 0
    answered: bool = False
    told: bool = False
    way_on: Callable[[], str] = field(default=lambda: _start_again())

    def ask(self, status: int, why: str) -> None:
        """Asks for the end; the first call decides the status and the reason."""
        if self.status is None:
            self.since, self.why, self.status = time.monotonic(), why, status

    def answer(self) -> None:
        """Raises: Stopped, once, if the end was asked for and no file is being written. It is called in the main thread."""
        if self.status is not None and not self.answered and not self.writing:
            self.answered = True
            raise Stopped(self.status)

    def tell(self) -> None:
        """Says once, in a line on standard error, why the command ends and how to go on.

        Of several processes the first one says it, or the one that knows of a failure.
        """
        if self.told or not (is_first() or self.status == FAILED):
            return
        self.told = True
        with suppress(OSError, ValueError):  # the terminal was closed
            say(f"\n{self.why} {self.way_on()}".rstrip(), file=sys.stderr, flush=True)


def _start_again() -> str:
    """Returns how to continue a command that keeps only what is whole."""
    return (
        f"Nothing is left half-written. Start again with: {shlex.join(['python', *without_token(sys.orig_argv[1:])])}"
    )


ending = Ending()


def statuses() -> dict[int, int]:
    """Returns the exit status for each signal that ends a command. SLURM sends SIGUSR1, if it is asked to, before it ends a job."""
    found = {signal.SIGTERM: TERMINATED, signal.SIGINT: 128 + signal.SIGINT}
    if hasattr(signal, "SIGHUP"):  # the terminal was closed
        found[signal.SIGHUP] = 128 + signal.SIGHUP
    if hasattr(signal, "SIGUSR1") and "SLURM_JOB_ID" in os.environ:
        found[signal.SIGUSR1] = TERMINATED
    return found


@contextmanager
def heeded() -> Iterator[dict[int, int]]:
    """Wraps a command in the main thread; yields the signals that now end it by `Stopped`, with their statuses.

    Signals that are ignored when the command starts, as under nohup, stay ignored.
    """
    before = {number: signal.getsignal(number) for number in statuses()}
    taken = {number: status for number, status in statuses().items() if before[number] is not signal.SIG_IGN}
    ending.__init__()

    def end(number: int, frame: object) -> None:
        ending.ask(taken[number], "Stopped.")
        ending.answer()

    for number in taken:
        signal.signal(number, end)
    try:
        yield taken
    finally:
        for number in taken:
            signal.signal(number, before[number] or signal.SIG_DFL)


@contextmanager
def whole_first() -> Iterator[None]:
    """Wraps the writing of a file: whatever asks for the end waits until the file is whole."""
    ending.writing += 1
    try:
        yield
    finally:
        ending.writing -= 1
        if threading.current_thread() is threading.main_thread():
            ending.answer()
