"""The bytes of images, what tells them apart, and what tells that a file is still the one that was read."""

from __future__ import annotations

import os
from errno import EFBIG
from functools import cache
from pathlib import Path

import numpy as np

from clip_ood.features.identity import identity_of
from clip_ood.files.regular_file import check_regular
from clip_ood.process.stalls import reading

LARGEST = 1 << 30  # bytes of an image; one of that many pixels would be refused anyway
TRIES = 3  # to read a file that others write


@cache
def real_folder(folder: str) -> str:
    """The folder that a path stands for, links resolved; once a process."""
    return os.path.realpath(folder)


def real_path(path: str) -> str:
    """A file's path with the links of its folder resolved."""
    folder, _, name = path.rpartition("/")
    return f"{real_folder(folder)}/{name}"


def stamp(real_path: str, found: os.stat_result, *inside: int) -> bytes:
    """What a file's content is known by: its real path, size, times of writing and of any change, inode; and, of an image that
    lies `inside` it, offset and size."""
    about = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, *inside)
    return identity_of(real_path, ",".join(map(str, about)))


def hides_changes(found: os.stat_result) -> bool:
    """Whether a file could change without a sign: some file systems have no time of change, and give that of writing."""
    return found.st_ctime_ns == found.st_mtime_ns


def read_whole(path: Path, offset: int = 0, size: int | None = None) -> tuple[bytes, os.stat_result]:
    """Bytes of a file and its state when they were read; a file that changed meanwhile is read again.

    Raises: OSError for a file that cannot be had, that is none (a pipe would keep us waiting), that is shorter than asked for,
    larger than any image, or that does not stop changing; MemoryError, which names the file.
    """
    with reading(path):
        return _read(path, offset, size)


def _read(path: Path, offset: int, size: int | None) -> tuple[bytes, os.stat_result]:
    if (check_regular(path) if size is None else size) > LARGEST:
        raise OSError(EFBIG, f"over {LARGEST:,} bytes, more than any picture that is read", str(path))
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
            raise OSError(5, "the shard has become shorter", str(path))
        if _state(before) == _state(after) and (size is not None or len(content) == after.st_size):
            return content, after
    raise OSError(5, "the file changes while it is read", str(path))


def _state(found: os.stat_result) -> tuple[int, ...]:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def of_pixels(pixels: np.ndarray) -> bytes:
    """The identity of an image that lies in memory."""
    return identity_of("pixels", str(pixels.shape), np.ascontiguousarray(pixels).tobytes())
