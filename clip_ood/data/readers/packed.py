"""Reads images that lie in other files, each at its place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from clip_ood.data.readers.objects import Object
from clip_ood.data.readers.on_disk import OnDisk, Place
from clip_ood.data.readers.parquet_rows import Row
from clip_ood.data.readers.reader import Reader, Stamps


class Packed(OnDisk):
    """Reads members of an archive, cells of parquet files, or what these name by path or address."""

    def __init__(
        self,
        places: Sequence[Place | Row | Object],
        names: Sequence[str],
        labels: Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.places, self.names, self.labels, self.class_names = places, names, labels, class_names
        self.waits = any(isinstance(each, Object) for each in places)

    def place(self, index: int) -> Place | Row | Object:
        return self.places[index]

    def stamps(self, indices: Iterable[int]) -> Stamps:
        return Reader.stamps(self, indices) if self.waits else super().stamps(indices)
