"""Reads the images of a data set that Hugging Face's `datasets` has loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from errno import EFBIG, EIO
from typing import TYPE_CHECKING

import pyarrow as pa

from clip_ood.data.readers.on_disk import LARGEST, Place
from clip_ood.data.readers.parquet_rows import content_of
from clip_ood.data.readers.reader import NoImage, Reader, Stamp
from clip_ood.features.identity import identity_of

if TYPE_CHECKING:
    from datasets import Dataset


class DatasetRows(Reader):
    """Reads `column` of `rows`, which holds {bytes, path} or bytes; images that are files of their own are at `files`, by row.

    An image in the rows is known by the fingerprint that `datasets` gives them, and one in a file by the file.
    """

    def __init__(
        self,
        rows: Dataset,
        column: str,
        names: Sequence[str],
        files: Mapping[int, str],
        labels: Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.rows, self.column, self.names, self.files = rows, column, names, files
        self.labels, self.class_names = labels, class_names

    def open(self, index: int) -> bytes:
        if (path := self._file(index)) is not None:
            return Place(path).read()
        try:
            content = content_of(self.rows[index][self.column])
        except (pa.ArrowException, ValueError) as error:
            raise OSError(EIO, f"the data set is damaged ({error})", self.names[index]) from None
        if content is None:
            raise NoImage(EIO, "the row holds no image", self.names[index])
        if len(content) > LARGEST:
            raise NoImage(EFBIG, f"over {LARGEST:,} bytes, more than any picture that is read", self.names[index])
        return content

    def stamp(self, index: int) -> Stamp:
        if (path := self.path(index)) is not None:
            return Place(path).stamp()
        return Stamp(identity_of("dataset", self.rows._fingerprint, self.column, str(index)))

    def path(self, index: int) -> str | None:
        path = self.files.get(index)
        return None if path is None or "://" in path else path

    def _file(self, index: int) -> str | None:
        """Returns the path of a file. Raises: NoImage for one that is inside an archive or elsewhere."""
        path = self.files.get(index)
        if path is not None and "://" in path:
            raise NoImage(EIO, f"it lies at {path}, which is no file on this machine: unpack the archive", path)
        return path
