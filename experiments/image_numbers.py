"""Which images of an evaluation are the same ones, by what their files hold."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from clip_ood.data.benchmark import Benchmark, Part
from clip_ood.features.stored_set import Features


def image_numbers(benchmark: Benchmark, features: Mapping[str, Features]) -> dict[str, Tensor]:
    """Returns, by part, a number (int64) for each row of its image set: 8 bytes of a hash of the image's content. A corrupted ID image has
    the number of the image that it is made of. Empty where contents are not known."""
    if any(features[part.images].identities is None for part in benchmark.evaluated):
        return {}
    return {
        part.name: torch.from_numpy(contents_of(benchmark, features, part)[:, 0].astype("int64"))
        for part in benchmark.evaluated
    }


def contents_of(benchmark: Benchmark, features: Mapping[str, Features], part: Part) -> np.ndarray:
    """Returns the identity (N, 2) of each image of a part's image set; a corrupted ID image has that of the image it is made of.

    `benchmark` is the one that was listed, with all of its ID test images.
    """
    if benchmark.images[part.images].corruption is None:
        return features[part.images].identities
    tested = benchmark.parts["id_test"]
    return features[tested.images].identities[tested.rows]
