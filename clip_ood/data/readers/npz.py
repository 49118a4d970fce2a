"""Images in a file of NumPy's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from clip_ood.data.readers.arrays import Arrays


class Npz(Arrays):
    """A file that `numpy.savez` wrote: `images` (N, H, W) or (N, H, W, 3) of uint8 and, if they have classes, `labels` (N,).

    `classes` names these in label order. Raises: ValueError for a file of another kind, OSError for one that cannot be had.
    """

    def __init__(self, path: Path, classes: Sequence[str] | None = None) -> None:
        try:
            loaded = np.load(path, allow_pickle=False)
            arrays = {"an array": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
        except BadZipFile as error:
            raise ValueError(f"{path} is no whole file of numpy.savez: {error}") from error
        if "images" not in arrays or arrays["images"].ndim < 3:
            shapes = ", ".join(f"{name} {each.shape}" for name, each in arrays.items()) or "nothing"
            raise ValueError(f"{path} holds {shapes}; expected images (N, H, W, 3), and labels (N,) if there are any")
        names = [f"{path.stem}/{index:06d}" for index in range(len(arrays["images"]))]
        super().__init__(arrays["images"], names, arrays.get("labels"), classes)
