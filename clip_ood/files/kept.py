"""Keeps what can be made again in a folder of the user's cache, up to a number of bytes: what was used longest ago goes.

An entry is a file, or a folder of files, beside an empty file that ends in .used, which was written when it was last used: nothing about
the entry itself may change. What a process uses stays.
"""

from __future__ import annotations

import atexit
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from clip_ood.process.locks import InUse, alone, in_turn, sharing
from clip_ood.terminal.shown import say

_used: dict[Path, ExitStack] = {}  # entries that this process shares with others until it ends


@contextmanager
def keeping(lock: Path, target: Path) -> Iterator[None]:
    """Lets one process alone look for the entry `target` of a folder, and make it; then it is marked as used, until this process ends.

    `lock` is what it has alone: the folder, or only the entry, so that others may make other entries meanwhile.
    """
    with in_turn(lock, tell):
        yield
        _used_at(target).write_bytes(b"")
        if target not in _used:
            _used[target] = ExitStack()
            _used[target].enter_context(sharing(target))
            atexit.register(_used[target].close)


def make_room(folder: Path, pattern: str, size: int, limit: int) -> None:
    """Removes entries of this pattern, those used longest ago first, until `size` more bytes are within the limit; those in use stay.

    The folder is the caller's alone.
    """
    found = sorted((_last_used(path), _size(path), path) for path in folder.glob(pattern))
    total = size + sum(each for _, each, _ in found)
    for _, each, path in found:
        if total <= limit:
            return
        if path in _used:  # by this process, whose own lock is no hindrance
            continue
        with suppress(InUse), alone(path, ""):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            _used_at(path).unlink(missing_ok=True)
            total -= each


def tell(text: str) -> None:
    """Says what is done at length, on standard error, because standard output may be for predictions."""
    say(text, file=sys.stderr, flush=True)


def _size(entry: Path) -> int:
    total = 0
    with suppress(FileNotFoundError):  # another process is at work there
        for each in [entry] if entry.is_file() else entry.iterdir():
            total += each.stat().st_size
    return total


def _used_at(target: Path) -> Path:
    return target.with_suffix(".used")


def _last_used(target: Path) -> int:
    try:
        return _used_at(target).stat().st_mtime_ns
    except FileNotFoundError:  # its process was killed before it was used
        return 0
