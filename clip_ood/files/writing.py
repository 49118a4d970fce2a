"""Files that are whole or not there, whatever ends the process that writes them."""

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

ABANDONED = 86400  # seconds without a word written: without locks nothing else tells what a killed run has left


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file that becomes `path` once it is whole and on the disk, and goes if it cannot be; a file that it replaces gives its mode.

    While it is written it is locked, which tells it from what a killed run has left (`remove_abandoned`), and signals wait.
    Raises: OSError, which names `path`.
    """
    with whole_first(), naming(path), _written(path) as file:
        yield file


@contextmanager
def _written(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, f"{escape(path.name)}.*.tmp")  # what a killed process has left of it
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
    """As `written_whole`: UTF-8 (and bytes of file names as they are), with the line ends that are written."""
    with written_whole(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        try:
            yield text
        finally:
            text.detach()  # what it holds is written first


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """A whole text as `written_whole`."""
    with written_whole(path) as file:
        file.write(text.encode("utf-8", errors))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Lets an OSError of what is done to a file name it: an error while bytes are written names none."""
    try:
        yield
    except OSError as error:
        if (
            error.filename is None or path.name in Path(error.filename).name
        ):  # or that of the file that was to become it
            error.filename = str(path)
        raise


def _locked(path: Path) -> BinaryIO:
    """A new temporary file beside `path`, locked."""
    while True:
        file = path.with_name(f"{path.name}.{uuid4().hex}.tmp").open("wb")
        with suppress(OSError, AttributeError):  # a file system or system without locks: then nobody removes it either
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:  # not taken for an abandoned one before it was locked
            return file
        file.close()


def check_writable(folder: Path) -> None:
    """Raises: OSError, which names `folder`, where no file can be written there; of a folder that is not there yet, where it would
    be made."""
    place = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}, so no file can be written there", str(place)) from None


def sync_folder(folder: Path) -> None:
    """Brings a folder's new names to the disk, where the system opens folders and the file system syncs them."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class LateErrors(io.BufferedIOBase):
    """What is written goes to `file`; the first error of the disk is kept for `check`: torch's zip writer ends the whole process
    where it meets one."""

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
        """Raises: OSError, where not all could be written."""
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
            with path.open("rb+") as file:  # NFS locks what is open for writing alone
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
