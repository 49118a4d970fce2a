"""Files that can be read to their end: a pipe would keep whoever opens it waiting, and a device may never end."""

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
    """What a path leads to where that is no file or folder: a pipe, a socket, a device; None for anything else, and for nothing."""
    try:
        return KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
    except (OSError, ValueError):
        return None


def check_regular(path: Path) -> int:
    """The size of a file in bytes. Raises: OSError for what is no file, and says what it is; it is not opened."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "a folder")
        raise OSError(EINVAL, f"it is {kind}, and no file", str(path))
    return found.st_size


def no_file(path: str | Path) -> str:
    """Why there is no file at `path`, for the end of a message; empty where nothing is there at all."""
    kind = special(path)
    return "" if kind is None else f": it is {kind}. Save what it gives in a file, and name that"
