"""Writes files that are whole or not there, whatever ends the process that writes them."""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from stat import S_IMODE
from typing import BinaryIO, TextIO
from uuid import uuid4

from clip_ood.process.stopping import whole_first

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

ABANDONED = 86400  # seconds without a write; without locks, nothing else tells what a killed run has left


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that becomes `path` once it is whole and on the disk, and is removed if it cannot be written.

    It takes the mode of a file that it replaces. While it is written, it is locked, so that `remove_abandoned` can tell it from
    what a killed run has left, and signals wait.
    Raises: OSError, which names `path`.
    """
    with whole_first(), naming(path), _written(path) as file:
        yield file


@contextmanager
def _written(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, f"{escape(path.name)}.*.tmp")  # a killed process may have left some
    file = _locked(path)
    temporary = Path(file.name)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            with suppress(OSError):
                temporary.chmod(S_IMODE(path.stat().st_mode))
            try:
                temporary.replace(path)
            except PermissionError:  # Windows renames no file that is open
                file.close()
                temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def written_text(path: Path) -> Iterator[TextIO]:
    """Opens a file as `written_whole` does, for UTF-8 text (and bytes of file names as they are), keeping line ends as written."""
    with written_whole(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        try:
            yield text
        finally:
            text.detach()  # writes what it holds first


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Writes a whole text as `written_whole` does."""
    with written_whole(path) as file:
        file.write(text.encode("utf-8", errors))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Makes an OSError of work on a file name that file; an error while bytes are written names none."""
    try:
        yield
    except OSError as error:
        if (
            error.filename is None or path.name in Path(error.filename).name
        ):  # or that of the file that was to become it
            error.filename = str(path)
        raise


def temporary_name(path: Path) -> str:
    """Returns a new name for the file that is written beside `path` and then takes its place."""
    return f"{path.name}.{uuid4().hex}.tmp"


def _locked(path: Path) -> BinaryIO:
    """Returns a new temporary file beside `path`, locked."""
    while True:
        file = path.with_name(temporary_name(path)).open("wb")
        with suppress(OSError, AttributeError):  # without locks, no process removes it either
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:  # otherwise it was taken for an abandoned file before it was locked
            return file
        file.close()


def check_writable(folder: Path) -> None:
    """Raises: OSError, which names `folder`, if no file can be written there; of a missing folder, if it cannot be made."""
    place = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}, so no file can be written there", str(place)) from None


def sync_folder(folder: Path) -> None:
    """Writes a folder's new names to the disk, where the system opens folders and the file system syncs them."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class LateErrors(io.BufferedIOBase):
    """A file that passes everything to `file`, and keeps the first error of the disk for `check`.

    torch's zip writer would end the whole process at such an error.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.error = file, None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return offset if self.error else self.file.seek(offset, whence)

    def write(self, data: bytes | memoryview) -> int:
        try:
            if self.error is None:
                self.file.write(data)
        except OSError as error:
            self.error = error
        return len(data)

    def check(self) -> None:
        """Raises: OSError, if not everything could be written."""
        if self.error is not None:
            raise self.error


def remove_abandoned(folder: Path, pattern: str = "*.tmp") -> None:
    """Removes temporary files that no process holds any more."""
    for path in folder.glob(pattern):
        with suppress(OSError):
            if fcntl is None:
                if time.time() - path.stat().st_mtime > ABANDONED:
                    path.unlink()
                continue
            with path.open("rb+") as file:  # NFS locks only files that are open for writing
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
