"""Reads bytes of files: where they lie, how they are read whole, and what shows that a file has not changed since."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable
from errno import EFBIG, EIO
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clip_ood.data.allowance import RATIO, SLACK
from clip_ood.data.readers.inflated import inflated
from clip_ood.data.readers.reader import NoImage, Reader, Stamp, Stamps
from clip_ood.features.identity import identity_of, pairs
from clip_ood.files.regular_file import check_regular
from clip_ood.process.stalls import reading

LARGEST = 1 << 30  # bytes of an image; an image of that many pixels would be refused anyway
TRIES = 3  # to read a file that another process writes


class Place(NamedTuple):
    """The place of an image: the whole file at `path`, or `size` bytes of it from `offset`.

    Members of zip files also have a `checksum` (CRC-32), and those that are deflated the number of bytes that they give (`inflates_to`).
    """

    path: str
    offset: int = 0
    size: int | None = None
    checksum: int | None = None
    inflates_to: int | None = None

    def read(self) -> bytes:
        """Returns its bytes. Raises as `load` does."""
        return self._read()[0]

    def load(self) -> tuple[bytes, Stamp]:
        """Returns its bytes, and its stamp when they were read.

        Raises: as `read_whole` does, and OSError for a member of a zip file that is damaged or gives too many bytes.
        """
        content, state = self._read()
        return content, Stamp(self.known_by(state), hides_changes(state))

    def _read(self) -> tuple[bytes, os.stat_result]:
        if self.checksum is None:
            return read_whole(*self[:3])
        gives = self.inflates_to or 0
        if gives > LARGEST or gives > max(RATIO * self.size, SLACK):
            told = f"{self.size:,} bytes that would give {gives:,}, more than any picture that is read"
            raise NoImage(EFBIG, told, self.path)
        content, state = read_whole(*self[:3])
        try:
            return inflated(content, self.inflates_to, self.checksum), state
        except ValueError as error:
            raise NoImage(EIO, f"it is damaged in its archive ({error})", self.path) from None

    def stamp(self) -> Stamp:
        """Returns its stamp as the file is now. Raises: OSError."""
        with reading(self.path):
            state = os.stat(self.path)
        return Stamp(self.known_by(state), hides_changes(state))

    def known_by(self, state: os.stat_result) -> bytes:
        """Returns the value of its stamp for this state of its file.

        It is a hash of the file's real path, size, times of writing and of any change, and inode; and of offset and size of an
        image inside a file.
        """
        return stamp_of(self.path, state) if self.size is None else stamp_of(self.path, state, self.offset, self.size)

    @property
    def is_file(self) -> bool:
        """Whether the image is a file of its own."""
        return self.size is None


def stamp_of(path: str, state: os.stat_result, *inside: int | str) -> bytes:
    """Returns the value of the stamp of an image in a file in this state, or `inside` of it."""
    about = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, *inside]
    return identity_of(real_path(path), ",".join(map(str, about)))


class OnDisk(Reader):
    """Reads images that are files, or bytes of files."""

    @abstractmethod
    def place(self, index: int) -> Place:
        """Returns where an image lies."""

    def open(self, index: int) -> bytes:
        return self.place(index).read()

    def load(self, index: int) -> tuple[bytes, Stamp]:
        return self.place(index).load()

    def stamp(self, index: int) -> Stamp:
        return self.place(index).stamp()

    def stamps(self, indices: Iterable[int]) -> Stamps:
        """Returns stamps, looking at a file only once for all consecutive images in it."""
        real_folder.cache_clear()  # links may lead elsewhere by now
        values, vague, path, state = [], [], None, None
        for index in indices:
            place = self.place(index)
            if place.path != path:
                path, state = place.path, os.stat(place.path)
            values.append(place.known_by(state))
            vague.append(hides_changes(state))
        return Stamps(pairs(values), np.array(vague, bool))


@cache
def real_folder(folder: str) -> str:
    """Returns the folder that a path stands for, with links resolved; each is resolved once in a process."""
    return os.path.realpath(folder)


def real_path(path: str) -> str:
    """Returns a file's path with the links of its folder resolved."""
    folder, _, name = path.rpartition("/")
    return f"{real_folder(folder)}/{name}"


def hides_changes(state: os.stat_result) -> bool:
    """Says whether a file could change without a sign: some file systems have no time of change, and report that of writing."""
    return state.st_ctime_ns == state.st_mtime_ns


def read_whole(path: str | Path, offset: int = 0, size: int | None = None) -> tuple[bytes, os.stat_result]:
    """Returns bytes of a file and its state when they were read; a file that changed meanwhile is read again.

    Raises: OSError for a file that cannot be read, is no regular file (reading a pipe would wait forever), is shorter than asked
    for, is larger than any image, or does not stop changing; MemoryError, which names the file.
    """
    with reading(path):
        return _read(Path(path), offset, size)


def _read(path: Path, offset: int, size: int | None) -> tuple[bytes, os.stat_result]:
    if (check_regular(path) if size is None else size) > LARGEST:
        raise NoImage(EFBIG, f"over {LARGEST:,} bytes, more than any picture that is read", str(path))
    for _ in range(TRIES):
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            file.seek(offset)
            try:
                content = file.read(before.st_size if size is None else size)
            except MemoryError:
                raise MemoryError(f"{path} has {before.st_size if size is None else size:,} bytes") from None
            after = os.fstat(file.fileno())
        if size is not None and len(content) < size:
            raise OSError(EIO, "the shard has become shorter", str(path))
        if _state(before) == _state(after) and (size is not None or len(content) == after.st_size):
            return content, after
    raise OSError(EIO, "the file changes while it is read", str(path))


def _state(found: os.stat_result) -> tuple[int, ...]:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
