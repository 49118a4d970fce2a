"""Reads images that lie in memory as arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clip_ood.data.readers.reader import Reader


class Arrays(Reader):
    """Reads images from `pixels` (N, H, W) or (N, H, W, 3) of uint8."""

    def __init__(
        self,
        pixels: np.ndarray,
        names: Sequence[str],
        labels: Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.pixels, self.names, self.labels, self.class_names = pixels, names, labels, class_names

    def open(self, index: int) -> np.ndarray:
        return self.pixels[index]
