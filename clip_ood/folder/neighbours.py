"""Finds the nearest images of each image of a folder, among those that are no copies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_ood.detectors.neighbours import nearest
from clip_ood.features.rows import Rows


@dataclass(frozen=True)
class Neighbours:
    """The k nearest of some images, the nearest first: their places (n, k) int64 in the folder, and the cosines (n, k) to them."""

    places: Tensor
    cosines: Tensor


def neighbours(features: Rows, first: np.ndarray, k: int) -> Iterator[Neighbours]:
    """Yields, block by block, the k nearest of images by their features (N, D), or as many as there are.

    first (N,): for each image the place of the first image of its group of copies. Only first images are neighbours, and none of the
    image's own group.
    """
    kept = torch.from_numpy(np.flatnonzero(first == np.arange(len(first))))
    k = min(k, len(kept) - 1)
    bank = [normalize(block.float(), dim=1) for block in features.subset(kept).blocks()]
    start = 0
    for block in features.blocks():
        own = torch.from_numpy(first[start : start + len(block)])[:, None]
        start += len(block)
        cosines, places = nearest(normalize(block.float(), dim=1), bank, k + 1)
        places = kept[places]
        left_out = places == own
        left_out[:, -1] |= ~left_out.any(dim=1)  # one too many was asked for
        yield Neighbours(places[~left_out].view(len(block), k), cosines[~left_out].view(len(block), k))
