"""Which images of an evaluation are the same ones, by what their files hold."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from clip_ood.data.benchmark import Benchmark
from clip_ood.features.stored_set import Features


def image_numbers(benchmark: Benchmark, features: Mapping[str, Features]) -> dict[str, Tensor]:
    """Returns, by part, a number (int64) for each row of its image set: 8 bytes of a hash of the image's content. A corrupted ID image has
    the number of the image that it is made of. Empty where contents are not known."""
    if any(features[part.images].identities is None for part in benchmark.evaluated):
        return {}
    tested = benchmark.parts["id_test"]
    numbers = {}
    for part in benchmark.evaluated:
        made = benchmark.images[part.images].corruption is not None
        identities = features[tested.images if made else part.images].identities[:, 0]
        if made:
            identities = identities[tested.rows]
        numbers[part.name] = torch.from_numpy(identities.astype("int64"))
    return numbers
