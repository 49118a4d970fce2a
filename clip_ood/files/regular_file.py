"""Checks for regular files, which can be read to their end: a pipe would keep its reader waiting, and a device may never end."""

from __future__ import annotations

import os
import stat
from errno import EINVAL
from pathlib import Path

KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def special(path: str | Path) -> str | None:
    """Returns what a path leads to if it is a pipe, a socket or a device, and None for a file, a folder, or nothing at all."""
    try:
        return KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
    except (OSError, ValueError):
        return None


def check_regular(path: Path) -> int:
    """Returns the size of a file in bytes without opening it. Raises: OSError for anything but a file, and says what it is."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "a folder")
        raise OSError(EINVAL, f"it is {kind}, and no file", str(path))
    return found.st_size


def no_file(path: str | Path) -> str:
    """Returns why there is no file at `path`, for the end of a message; it is empty if nothing is there at all."""
    kind = special(path)
    return "" if kind is None else f": it is {kind}. Save what it gives in a file, and name that"
