"""A thread that watches over a command and ends what does not end by itself.

It hears signals while the main thread waits in a library, passes them on to the other processes of the run, and notices when one
of those dies or a read stalls.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import NoneType
from typing import NoReturn

from clip_ood.process import stalls
from clip_ood.process.peers import Peers
from clip_ood.process.stopping import FAILED, Stopped, ending, heeded

GRACE = 30.0  # seconds that the file which is being written, and cleaning up, may take
ANSWER = 5.0  # seconds for everything else; a thread that does not answer waits for a disk or for another process
TICK = 0.5  # seconds between two looks

_watches: list[Watch] = []  # of this process, one at most


class Watch:
    """The watch over one command.

    `taken`: signal -> exit status; `parent`: the process that has started this one as one of several.
    """

    def __init__(self, taken: Mapping[int, int], parent: int | None) -> None:
        self.taken, self.parent = taken, parent
        self.ranks: list[subprocess.Popen] = []  # processes of the run that this one has started
        self.peers: Peers | None = None  # all of the run, once they have met
        self._hears, self._wakes = socket.socketpair()
        self._hears.settimeout(TICK)
        self._wakes.setblocking(False)
        self._leaving, self._passed, self._done = False, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._heard_before = signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        self._thread.start()

    def end(self) -> None:
        self._done.set()
        self._wake()
        self._thread.join()
        signal.set_wakeup_fd(self._heard_before)
        self._hears.close()
        self._wakes.close()

    def end_ranks(self, at_once: bool) -> None:
        """Waits until the processes that this one has started end, by themselves or, `at_once`, because they are asked to.

        Kills those that have not ended after the grace.
        """
        if at_once:
            self._leaving = True
            self._wake()
            self._passed.wait(ANSWER)
        until = (time.monotonic() if ending.status is None else ending.since) + GRACE - 1
        for rank in self.ranks:
            with suppress(subprocess.TimeoutExpired):
                rank.wait(max(0.0, until - time.monotonic()))
        for rank in self.ranks:
            rank.kill()

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # the watch is awake already
            self._wakes.send(b"\0")

    def _run(self) -> None:
        while not self._done.is_set():
            for number in self._heard():
                if number in self.taken and ending.status != FAILED:
                    ending.ask(self.taken[number], "Stopped.")
                    self._pass_on(number)
            self._meet()
            if ending.status is None:
                self._look()
            if ending.status is not None or self._leaving:
                self._pass_on(signal.SIGTERM)
            if ending.status is not None:
                self._insist()

    def _heard(self) -> bytes:
        """Returns the signals that came, or none after a tick.

        select() takes no descriptor above 1,023, and a run may have many open.
        """
        try:
            return self._hears.recv(64)
        except TimeoutError:
            return b""

    def _meet(self) -> None:
        """Finds processes of the run that were started neither by this one nor by the one that started it."""
        if self.peers is None and self.parent is None:
            self.peers = Peers.found(len(self.ranks) + 1)

    def _look(self) -> None:
        """Asks for the end if another process of the run has died, or a read stalls."""
        for number, rank in enumerate(self.ranks, start=2):
            if status := rank.poll():
                self._ended(f"process {number} of the run's {len(self.ranks) + 1}", status)
        if self.parent is not None and os.getppid() != self.parent:
            ending.ask(FAILED, "error: the first process of the run has died.")
        if self.peers is not None and (status := self.peers.ended()):
            others = "error: another process of the run has ended with an error; it says why."
            ending.ask(status, others if status == FAILED else "Stopped.")
        if late := stalls.overdue():
            ending.ask(FAILED, f"error: {late}")

    def _ended(self, called: str, status: int) -> None:
        if status in self.taken.values() or -status in self.taken:  # it was asked to end, and so is this process
            ending.ask(status if status > 0 else self.taken[-status], "Stopped.")
        elif status < 0:
            name = signal.Signals(-status).name
            hint = " which the system sends where memory runs out" if name == "SIGKILL" else ""
            ending.ask(FAILED, f"error: {called} was ended by {name}{',' if hint else ''}{hint}.")
        else:
            ending.ask(FAILED, f"error: {called} has ended with status {status}; it says why.")

    def _pass_on(self, number: int) -> None:
        """Passes a signal on to the processes that this one started, to the one that started it, and to all others of the run."""
        if self._passed.is_set():
            return
        for rank in self.ranks:
            rank.send_signal(number)
        self._meet()
        if self.peers is not None:
            self.peers.tell(ending.status or FAILED)
        if ending.status != FAILED and self.parent is not None and os.getppid() == self.parent:
            with suppress(ProcessLookupError):
                os.kill(self.parent, number)
        self._passed.set()

    def _insist(self) -> None:
        """Ends this process if it does not end by itself."""
        waited = time.monotonic() - ending.since
        if waited > GRACE or (waited > ANSWER and not ending.writing and not ending.answered):
            self._end_now()
        if not ending.answered and not ending.writing:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

    def _end_now(self) -> None:
        ending.tell()
        for rank in self.ranks:
            rank.kill()
        leave(ending.status)


@contextmanager
def watched(parent: int | None) -> Iterator[Watch]:
    """Wraps a command: says why it is stopped, if it is; however it ends, the processes that it has started end before it."""
    with heeded() as taken:
        watch = Watch(taken, parent)
        _watches.append(watch)
        watch.start()
        try:
            yield watch
            ending.answered = True  # everything is done, so nothing ends it any more
        finally:
            error = sys.exc_info()[1]
            if isinstance(error, Stopped):
                ending.tell()
            watch.end_ranks(at_once=isinstance(error, Stopped) or not isinstance(error, SystemExit | NoneType))
            watch.end()
            _watches.remove(watch)


def leave(status: int) -> NoReturn:
    """Ends this process and those that decode images for it, without first taking libraries down.

    That would take seconds, and might wait for processes that are gone.
    """
    for worker in multiprocessing.active_children():
        worker.kill()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # the stream's reader or terminal has gone
            stream.flush()
    os._exit(status)


def watch_ranks(processes: list[subprocess.Popen]) -> None:
    """Lets the watch over this command, if there is one, watch these processes, which it has started as parts of the run."""
    for watch in _watches:
        watch.ranks = processes


def _in_forked() -> None:
    """Clears the watch in a forked process, which its parent ends, so that it hears no signals."""
    for watch in _watches:
        signal.set_wakeup_fd(-1)
        for number in watch.taken:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    _watches.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked)
