"""Reads images that lie in other files, each at its place."""

from __future__ import annotations

from collections.abc import Sequence

from clip_ood.data.readers.on_disk import OnDisk, Place
from clip_ood.data.readers.parquet_rows import Row


class Packed(OnDisk):
    """Reads members of an archive, or cells of parquet files."""

    def __init__(
        self,
        places: Sequence[Place | Row],
        names: Sequence[str],
        labels: Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.places, self.names, self.labels, self.class_names = places, names, labels, class_names

    def place(self, index: int) -> Place | Row:
        return self.places[index]
