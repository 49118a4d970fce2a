"""Reads every page of files that may have several, as scans do."""

from __future__ import annotations

import io
from collections.abc import Sequence
from errno import EIO

import numpy as np

from clip_ood.data.readers.reader import NoImage, Reader, Stamp
from clip_ood.features.identity import identity_of
from clip_ood.files.pictures import UnreadableImage, decode


class Pages(Reader):
    """The pages of another reader's files: `pages` has the row and the page of each, which is None for a file of one page."""

    def __init__(self, files: Reader, pages: Sequence[tuple[int, int | None]], names: Sequence[str]) -> None:
        self.files, self.pages, self.names, self.waits = files, pages, names, files.waits

    def open(self, index: int) -> bytes | np.ndarray:
        row, page = self.pages[index]
        content = self.files.open(row)
        if page is None:
            return content
        try:
            return np.asarray(decode(io.BytesIO(content), page))
        except UnreadableImage as error:
            raise NoImage(EIO, str(error), self.names[index]) from error

    def stamp(self, index: int) -> Stamp | None:
        row, page = self.pages[index]
        stamp = self.files.stamp(row)
        return stamp if stamp is None or page is None else stamp._replace(value=identity_of(stamp.value, str(page)))

    def path(self, index: int) -> str | None:
        row, page = self.pages[index]
        return self.files.path(row) if page is None else None
