"""Reads images that are files of their own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from clip_ood.data.readers.on_disk import OnDisk, Place


class Files(OnDisk):
    """Reads files whose names are paths below `root`."""

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        labels: Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.root, self.names, self.labels, self.class_names = str(root), names, labels, class_names

    def place(self, index: int) -> Place:
        return Place(os.path.join(self.root, self.names[index]))

    def path(self, index: int) -> str:
        return os.path.join(self.root, self.names[index])
