"""Features that are given in the place of images, as the store would give them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from clip_ood.config.schema import Config
from clip_ood.config.set_keys import option_of
from clip_ood.data.benchmark import Benchmark
from clip_ood.data.image_list import ImageList
from clip_ood.data.readers.vectors import DTYPE, Vectors
from clip_ood.errors import ConfigError
from clip_ood.features.rows import Rows
from clip_ood.features.store import dtype_of
from clip_ood.features.stored_set import Features


def given_features(config: Config, benchmark: Benchmark) -> dict[str, Features]:
    """Returns the given features by image set, in the dtype in which those of an encoder are stored; equal rows are copies.

    Raises: ConfigError for sets of different widths, and for features that float16 does not hold where they are kept in it.
    """
    values = {key: _values(each) for key, each in benchmark.images.items()}
    first, expected = next((key, each.shape[1]) for key, each in values.items())
    if other := next((key for key, each in values.items() if each.shape[1] != expected), None):
        raise ConfigError(
            f"{option_of(other)} has features of {values[other].shape[1]} numbers, and {option_of(first)} of {expected}: give those of one "
            "encoder"
        )
    dtype = dtype_of(config.backbone.precision)
    return {
        key: Features(
            Rows([_kept(option_of(key), torch.from_numpy(each), dtype)]),
            None,
            torch.ones(len(each), dtype=torch.bool),
            benchmark.images[key].identities(),
        )
        for key, each in values.items()
    }


def _kept(option: str, values: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns finite float32 features (N, D) in the dtype in which they are kept."""
    kept = values.to(dtype)
    large, vanished = ~kept.isfinite().all(dim=1), values.any(dim=1) & ~kept.any(dim=1)
    if len(wrong := (large | vanished).nonzero()):
        row = int(wrong[0])
        what = "numbers beyond 65,504" if large[row] else "no number that is not 0"
        raise ConfigError(
            f"{option}: row {row} of the features has {what} as float16, in which backbone.precision keeps them: set backbone.precision=fp32"
        )
    return kept


def _values(images: ImageList) -> np.ndarray:
    """Returns features (N, D)."""
    if isinstance(images.reader, Vectors):
        return images.reader.take(images.rows)
    return np.stack([np.frombuffer(images.reader.open(row), DTYPE) for row in images.rows])
