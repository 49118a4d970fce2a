"""Who works at a file or folder: a lock beside it that ends with the process that has it, and a note that says who that is.

    .<name>.lock               held by whoever works there alone; .<name>.lock.json says who that is
    .<name>.<number>.shared    held by each of those that work there beside others, with the same note

Both go when the work ends. What a killed process leaves is of no effect, since the lock alone decides, and is used again. Where the
file system has no locks nobody is kept out.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from glob import escape
from pathlib import Path
from uuid import uuid4

from clip_ood.errors import UserError
from clip_ood.naming import short
from clip_ood.terminal.shown import one_line

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a system without locks: filelock then goes by the file being there
    from filelock import FileLock, Timeout

PATIENCE = 8.0  # seconds that the workers of a killed process may take to end
POLL = 0.1  # seconds between two tries
LONGEST = 200  # characters of a command that are told


class InUse(UserError):
    """A file or folder at which another process works."""


@contextmanager
def alone(place: Path, way_out: str) -> Iterator[None]:
    """Keeps other processes away from a file or folder, which need not be there yet. A process may ask again for what it has.

    Raises: InUse, which says who works there, where that does not end within `PATIENCE` seconds.
    """
    lock = _lock_of(place)
    with _held(lock, PATIENCE) as ours:
        if not ours:
            raise _in_use(place, lock, way_out)
        with ExitStack() as left:
            for other in _sharers(lock):
                if not left.enter_context(_held(other, 0)):  # those of killed processes go
                    raise _in_use(place, other, way_out)
        yield


@contextmanager
def in_turn(place: Path, say: Callable[[str], None] = print) -> Iterator[None]:
    """As `alone`, for short work and for what several processes want alike: waits until nobody works there, and says for whom."""
    lock = _lock_of(place)
    with ExitStack() as work:
        if not work.enter_context(_held(lock, 1)):
            say(f"{place} is in use by {_holder(lock)}: waiting until that ends")
            work.enter_context(_held(lock, -1))
        yield


@contextmanager
def sharing(place: Path) -> Iterator[None]:
    """Works at a file or folder beside others that share it, and lets nobody have it `alone`."""
    lock = _lock_of(place)
    own = lock.with_suffix(f".{uuid4().hex[:8]}.shared")
    with ExitStack() as work:
        with in_turn(place), ExitStack() as left:
            for other in _sharers(lock):
                left.enter_context(_held(other, 0))  # those of killed processes go
            work.enter_context(_held(own, 0))
        yield


def _lock_of(place: Path) -> Path:
    """The lock of a place, however it is spelt."""
    real = place.resolve() if place.is_dir() else place.parent.resolve() / place.name
    return real.with_name(f".{short(real.name)}.lock")


def _sharers(lock: Path) -> list[Path]:
    return sorted(lock.parent.glob(f"{escape(lock.stem)}.{'?' * 8}.shared"))


@contextmanager
def _held(path: Path, seconds: float) -> Iterator[bool]:
    """Whether this process has the lock within so many seconds (-1: however long it takes)."""
    lock = FileLock(path, is_singleton=True)
    if lock.is_locked:  # further out
        yield True
        return
    if not _acquired(lock, path, seconds):
        yield False
        return
    if not lock.is_locked:
        yield True
        return
    try:
        with suppress(OSError):
            _note(path).write_text(json.dumps(_about_this_process()), encoding="utf-8")
        yield True
    finally:
        for each in (_note(path), path):  # while it is locked: then nobody else relies on it
            with suppress(OSError):
                os.unlink(each)
        lock.release()


def _acquired(lock: FileLock, path: Path, seconds: float) -> bool:
    """Whether the lock was had, or cannot be had by anybody.

    Raises: InUse for one that is another user's, of which nothing can be known.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=seconds, poll_interval=POLL)
    except Timeout:
        return False
    except PermissionError as error:
        if path.exists():
            raise InUse(
                f"{path} belongs to another user, whose process may be at work: wait until it ends, and remove the file if there is none"
            ) from error
    except (OSError, NotImplementedError):  # a file system without locks, or one that cannot be written
        pass
    return True


def _note(lock: Path) -> Path:
    return lock.with_name(f"{lock.name}.json")


def _about_this_process() -> dict[str, str | int]:
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": shlex.join(sys.orig_argv)[:LONGEST],
    }


def _holder(lock: Path) -> str:
    """Who has a lock that this process could not have."""
    try:
        about = json.loads(_note(lock).read_text(encoding="utf-8"))
        told = "process {process} on {host} since {since} ({command})".format(**about)
    except (OSError, ValueError, TypeError, LookupError, AttributeError):  # not written yet, or not by this project
        return "another process"
    return one_line(told)


def _in_use(place: Path, lock: Path, way_out: str) -> InUse:
    return InUse(f"{place} is in use by {_holder(lock)}: {way_out}")
