"""Reads images that are cells of a parquet file, one after the other, without a row group in memory.

A row group can only be read from its beginning. So each process keeps the place that it has read last, and goes on from there for a
later row of the same group; rows in another order cost the reading of all rows before them in their group.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from errno import EFBIG, EIO
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from clip_ood.data.readers.objects import Object
from clip_ood.data.readers.on_disk import LARGEST, Place, hides_changes, stamp_of
from clip_ood.data.readers.reader import NoImage, Stamp
from clip_ood.files.remote.address import is_address, place_at
from clip_ood.process.stalls import reading

AT_ONCE = 64 << 20  # bytes of images that are in memory, about
BUFFER = 1 << 20  # bytes of the file that are read at a time


class Row(NamedTuple):
    """The place of an image: the cell of `column` in the `row` of a row `group` of the parquet file at `path`.

    A cell holds the bytes of an image file, or Hugging Face's {bytes, path} with bytes.
    """

    path: str
    group: int
    row: int
    column: str

    is_file = False

    def read(self) -> bytes:
        """Returns the bytes. Raises: as `load` does."""
        return self.load()[0]

    def load(self) -> tuple[bytes, Stamp]:
        """Returns the bytes, and the stamp of the image when they were read.

        Raises: OSError for a cell without an image, a file that is damaged, changes, or is no parquet file any more.
        """
        with reading(self.path):
            before = os.stat(self.path)
            content = content_of(_cell(self, before))
            if self.known_by(os.stat(self.path)) != self.known_by(before):
                raise OSError(EIO, "the file changes while it is read", self.path)
        if content is None:
            raise NoImage(EIO, "the row holds no image", self.path)
        if len(content) > LARGEST:
            raise NoImage(EFBIG, f"over {LARGEST:,} bytes, more than any picture that is read", self.path)
        return content, Stamp(self.known_by(before), hides_changes(before))

    def stamp(self) -> Stamp:
        """Returns the stamp of the image as the file is now. Raises: OSError."""
        state = os.stat(self.path)
        return Stamp(self.known_by(state), hides_changes(state))

    def known_by(self, state: os.stat_result) -> bytes:
        """Returns the value of its stamp for this state of its file."""
        return stamp_of(self.path, state, self.group, self.row, self.column)


def place_of(*fields: str | int | None) -> Place | Row | Object:
    """Returns the place that these are the fields of, as they come out of a file."""
    if is_address(fields[0]):
        return Object(place_at(fields[0]), *fields[1:])
    return Row(*fields) if isinstance(fields[-1], str) and len(fields) == len(Row._fields) else Place(*fields)


def content_of(cell: Any) -> bytes | None:
    """Returns the bytes of an image in a cell, or None if there are none."""
    return cell.get("bytes") if isinstance(cell, dict) else cell


def batches(file: pq.ParquetFile, group: int, column: str) -> Iterator[pa.Array]:
    """Yields the cells of a column of a row group, in batches of some `AT_ONCE` bytes."""
    about = file.metadata.row_group(group)
    each = about.total_byte_size // max(1, about.num_rows) + 1
    for batch in file.iter_batches(max(1, min(256, AT_ONCE // each)), [group], [column], use_threads=False):
        yield batch.column(0)


def opened(path: str | Path) -> pq.ParquetFile:
    """Opens a parquet file for reading in small pieces."""
    return pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False, page_checksum_verification=True)


@dataclass
class _Reading:
    """What is being read: `key` names it, the `cells` of the latest batch begin at row `start`, and `rest` gives the next ones."""

    key: tuple
    start: int
    cells: pa.Array
    rest: Iterator[pa.Array]


_latest: _Reading | None = None


def _cell(place: Row, state: os.stat_result) -> Any:
    """Returns a cell as a Python value. Raises: OSError."""
    global _latest
    key = (os.getpid(), place.path, state.st_size, state.st_mtime_ns, state.st_ino, place.group, place.column)
    found, _latest = _latest, None  # is not kept if it fails
    try:
        if found is None or found.key != key or found.start > place.row:
            rest = batches(opened(place.path), place.group, place.column)
            found = _Reading(key, 0, next(rest), rest)
        while found.start + len(found.cells) <= place.row:
            found.start += len(found.cells)
            found.cells = next(found.rest)
        cell = found.cells[place.row - found.start].as_py()
    except StopIteration:
        raise OSError(EIO, "the parquet file has fewer rows than it had", place.path) from None
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise OSError(EIO, f"the parquet file is damaged ({error})", place.path) from None
    _latest = found
    return cell
