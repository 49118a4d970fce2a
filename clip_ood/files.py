"""Files that are whole or not there, whatever ends the process that writes them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from clip_ood.stopping import whole_first

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

ABANDONED = 86400  # seconds without a word written: without locks nothing else tells what a killed run has left


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file that becomes `path` once it is whole and on the disk, and goes if it cannot be.

    While it is written it is locked, which tells it from what a killed run has left (`remove_abandoned`), and signals wait.
    """
    with whole_first(), _written(path) as file:
        yield file


@contextmanager
def _written(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _locked(path)
    temporary = Path(file.name)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            try:
                temporary.replace(path)
            except PermissionError:  # Windows renames no file that is open
                file.close()
                temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _locked(path: Path) -> BinaryIO:
    """A new temporary file beside `path`, locked."""
    while True:
        file = path.with_name(f"{path.name}.{uuid4().hex}.tmp").open("wb")
        with suppress(OSError, AttributeError):  # a file system or system without locks: then nobody removes it either
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:  # not taken for an abandoned one before it was locked
            return file
        file.close()


def sync_folder(folder: Path) -> None:
    """Brings a folder's new names to the disk, where the system opens folders and the file system syncs them."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_abandoned(folder: Path) -> None:
    """Removes temporary files that no process holds any more."""
    for path in folder.glob("*.tmp"):
        with suppress(OSError):
            if fcntl is None:
                if time.time() - path.stat().st_mtime > ABANDONED:
                    path.unlink()
                continue
            with path.open("rb+") as file:  # NFS locks what is open for writing alone
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
