"""Reads features that are given in the place of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clip_ood.data.readers.reader import Reader

DTYPE = np.float32


class Vectors(Reader):
    """Reads rows of `values` (N, D), each as the bytes of D float32 numbers, which are no picture."""

    def __init__(
        self,
        values: np.ndarray,
        names: Sequence[str],
        labels: Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.values, self.names, self.labels, self.class_names = values, names, labels, class_names

    def open(self, index: int) -> bytes:
        return self.values[index].astype(DTYPE).tobytes()

    def take(self, rows: Sequence[int]) -> np.ndarray:
        """Returns some rows (n, D) as float32; all of them in their order are no copy, if they are float32."""
        if rows == range(len(self.values)):
            return np.asarray(self.values, DTYPE)
        return self.values[np.asarray(rows)].astype(DTYPE)
