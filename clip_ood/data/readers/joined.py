"""Reads images of several lists as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from clip_ood.data.readers.reader import Reader, Stamp

if TYPE_CHECKING:
    from clip_ood.data.image_list import ImageList


class Joined(Reader):
    """Reads the images of lists one after the other. Where two have one name, each has its list's name before its own."""

    def __init__(self, lists: Sequence[ImageList]) -> None:
        self.places = [(each.reader, row) for each in lists for row in each.rows]
        names = [name for each in lists for name in each.names]
        if len(set(names)) < len(names):
            names = [f"{each.name}/{name}" for each in lists for name in each.names]
        self.names, self.waits = tuple(names), any(each.reader.waits for each in lists)

    def open(self, index: int) -> bytes | np.ndarray:
        reader, row = self.places[index]
        return reader.open(row)

    def stamp(self, index: int) -> Stamp | None:
        reader, row = self.places[index]
        return reader.stamp(row)

    def load(self, index: int) -> tuple[bytes | np.ndarray, Stamp | None]:
        reader, row = self.places[index]
        return reader.load(row)

    def path(self, index: int) -> str | None:
        reader, row = self.places[index]
        return reader.path(row)
