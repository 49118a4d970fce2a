"""Removes files whose entries were merged into another file: at once, or later if another machine may still have them mapped."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

MERGED = ".merged"  # ends the name of a file that is removed later
KEPT = 86400  # seconds
NETWORK = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "afs",
    "fuse",
)  # begin the names of file systems that forget removed files while they are open


def retire(path: Path) -> None:
    """Removes a file or, on a network file system, renames it so that `remove_retired` finds it a day later.

    If another machine has the file mapped, its reads would fail there once the file is gone.
    """
    if file_system(path.parent).startswith(NETWORK):
        path.rename(path.with_name(path.name + MERGED))
    else:
        path.unlink(missing_ok=True)


def remove_retired(folder: Path, clock: Path) -> None:
    """Removes files that were retired over a day ago, by the clock of the file system that holds them.

    `clock` is a file there, which is touched to read this clock.
    """
    if not (retired := list(folder.glob(f"*{MERGED}"))):
        return
    os.utime(clock)
    now = clock.stat().st_mtime
    for path in retired:
        with suppress(OSError):  # another run was faster
            if now - path.stat().st_ctime > KEPT:
                path.unlink()


def file_system(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Returns the kind of file system that a folder lies on, as `ext4` or `nfs4`; it is empty if the system does not tell."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    real, found = os.path.realpath(folder), ("", "")
    for line in lines:
        _, written, kind, *_ = line.split(" ")
        place = written.replace("\\040", " ").rstrip("/")
        if (real == place or real.startswith(f"{place}/")) and len(place) >= len(found[0]):
            found = place, kind
    return found[1]
