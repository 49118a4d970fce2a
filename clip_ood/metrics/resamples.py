"""Bootstrap resamples of the images, drawn once and shared by all detectors, so that their comparison is paired."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Resamples:
    """B resamples with replacement of M ID and N OOD images, as counts: one byte for each image and resample.

    Attributes:
        id_counts: (B, M) uint8, how often each ID image was drawn; each row sums to M.
        ood_counts: (B, N) uint8, the same for the OOD images.
    """

    id_counts: Tensor
    ood_counts: Tensor

    def check_sizes(self, num_id: int, num_ood: int) -> None:
        """Raise ValueError unless the resamples were drawn for this many ID and OOD images."""
        drawn = self.id_counts.shape[1], self.ood_counts.shape[1]
        if drawn != (num_id, num_ood):
            raise ValueError(
                f"resamples were drawn for {drawn[0]} ID and {drawn[1]} OOD images, "
                f"the scores are of {num_id} ID and {num_ood} OOD images; draw them for these sizes"
            )


def draw_resamples(num_id: int, num_ood: Mapping[str, int], count: int = 500, seed: int = 0) -> dict[str, Resamples]:
    """Draw B = `count` resamples for every OOD set, all with the very same resamples of the ID images.

    A set's resamples depend on seed, name and size only, not on which other sets are there.

    Args:
        num_id: M, the number of ID images.
        num_ood: number of images of each OOD set, by its name.
        count: B, at least 1.
        seed: any integer; the same seed gives the same resamples.

    Returns:
        `Resamples` by the name of the OOD set; `id_counts` is one tensor shared by all.

    Raises:
        ValueError: fewer than one resample, or a set without images.

    References:
        Efron, "Bootstrap Methods: Another Look at the Jackknife", The Annals of Statistics 1979.
    """
    if count < 1:
        raise ValueError(f"count is {count}, expected at least 1 resample")
    id_counts = _draw(num_id, count, f"{seed}/id", "ID images")
    return {
        name: Resamples(id_counts, _draw(size, count, f"{seed}/ood/{name}", f"images of OOD set {name!r}"))
        for name, size in num_ood.items()
    }


def _draw(size: int, count: int, key: str, what: str) -> Tensor:
    if size < 1:
        raise ValueError(f"there are {size} {what}, expected at least 1 to resample")
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    counts = torch.empty(count, size, dtype=torch.uint8)  # a count above 255 has probability below 1e-500
    for row in counts:
        row.copy_(torch.bincount(torch.randint(size, (size,), generator=generator), minlength=size))
    return counts
