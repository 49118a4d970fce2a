"""Reads images that lie in an archive and are called as if it were unpacked."""

from __future__ import annotations

from collections.abc import Sequence

from clip_ood.data.readers.on_disk import OnDisk, Place


class Packed(OnDisk):
    """Reads members of an archive, each at its place."""

    def __init__(
        self,
        places: Sequence[Place],
        names: Sequence[str],
        labels: Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.places, self.names, self.labels, self.class_names = places, names, labels, class_names

    def place(self, index: int) -> Place:
        return self.places[index]
