"""Locks for work at a file or folder: a lock beside it ends with the process that has it, and a note says which process that is.

    .<name>.lock               held by the process that works there alone; .<name>.lock.json says which one
    .<name>.<number>.shared    held by each process that works there beside others, with the same note

Both are removed when the work ends. A file that a killed process leaves has no effect, since only the lock decides, and is used
again. On a file system without locks, no process is kept out.
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
from clip_ood.terminal.shown import one_line, without_secrets, without_token

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # on a system without locks, filelock goes by the existence of the file
    from filelock import FileLock, Timeout

PATIENCE = 8.0  # seconds that the workers of a killed process may take to end
POLL = 0.1  # seconds between two tries
LONGEST = 200  # characters of a command that are shown


class InUse(UserError):
    """Another process works at a file or folder."""


@contextmanager
def alone(place: Path, way_out: str) -> Iterator[None]:
    """Keeps other processes away from a file or folder, which need not exist yet. A process may ask again for what it has.

    Raises: InUse, which says who works there, if that does not end within `PATIENCE` seconds.
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
    """Keeps others away as `alone` does, but first waits until no other process works there, and says for which one it waits.

    It is meant for short work, and for work whose result several processes want.
    """
    lock = _lock_of(place)
    with ExitStack() as work:
        if not work.enter_context(_held(lock, 1)):
            say(f"{place} is in use by {_holder(lock)}: waiting until that ends")
            work.enter_context(_held(lock, -1))
        yield


@contextmanager
def sharing(place: Path) -> Iterator[None]:
    """Works at a file or folder beside others that share it, and lets no process have it `alone`."""
    lock = _lock_of(place)
    own = lock.with_suffix(f".{uuid4().hex[:8]}.shared")
    with ExitStack() as work:
        with in_turn(place), ExitStack() as left:
            for other in _sharers(lock):
                left.enter_context(_held(other, 0))  # those of killed processes go
            work.enter_context(_held(own, 0))
        yield


def _lock_of(place: Path) -> Path:
    """Returns the lock of a place, however its path is written."""
    real = place.resolve() if place.is_dir() else place.parent.resolve() / place.name
    return real.with_name(f".{short(real.name)}.lock")


def _sharers(lock: Path) -> list[Path]:
    return sorted(lock.parent.glob(f"{escape(lock.stem)}.{'?' * 8}.shared"))


@contextmanager
def _held(path: Path, seconds: float) -> Iterator[bool]:
    """Yields whether this process has the lock within this many seconds (-1: however long it takes)."""
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
        for each in (_note(path), path):  # removed while locked, so that no other process relies on it
            with suppress(OSError):
                os.unlink(each)
        lock.release()


def _acquired(lock: FileLock, path: Path, seconds: float) -> bool:
    """Says whether the lock was acquired, or cannot be acquired by any process.

    Raises: InUse for another user's lock, of which nothing can be known.
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
    except (OSError, NotImplementedError):  # the file system has no locks, or cannot be written
        pass
    return True


def _note(lock: Path) -> Path:
    return lock.with_name(f"{lock.name}.json")


def _about_this_process() -> dict[str, str | int]:
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": without_secrets(shlex.join(without_token(sys.orig_argv)))[:LONGEST],
    }


def _holder(lock: Path) -> str:
    """Returns who has a lock that this process could not get."""
    try:
        about = json.loads(_note(lock).read_text(encoding="utf-8"))
        told = "process {process} on {host} since {since} ({command})".format(**about)
    except (OSError, ValueError, TypeError, LookupError, AttributeError):  # not written yet, or not by this project
        return "another process"
    return one_line(told)


def _in_use(place: Path, lock: Path, way_out: str) -> InUse:
    return InUse(f"{place} is in use by {_holder(lock)}: {way_out}")
