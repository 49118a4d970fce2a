"""Compares how dense each image's surroundings are with those of its neighbours: the local outlier factor."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_ood.features.rows import Rows

MOST = 5_000  # images that others are compared with
BLOCK = 512  # images at once
CLOSE = 1e-3  # distances below this are due to rounding, and count as this


def local_density(points: Rows, k: float, most: int = MOST) -> Tensor:
    """Returns −LOF_k (N,) of images by the directions of their points (N, q), where k is a number or, below 1, a share of all others, and at least 1 and
    at most all of them; higher means more in-distribution, and about −1 is usual.

    LOF_k(i) = mean of lrd(j) / lrd(i) over the k nearest j of i, 1 / lrd(i) = mean of max(r_j, ‖i − j‖), where r_j is the distance of j to
    its k-th nearest. A group of fewer than k images has no neighbourhood of its own. With more than `most` images, neighbours are sought among that
    many, evenly drawn: a share of them is the same share of all, and a number of them stands for more. One image alone has −1.
    Breunig et al., LOF: Identifying Density-Based Local Outliers, 2000.
    """
    drawn = torch.linspace(0, len(points) - 1, min(len(points), most)).round().long()
    k = min(max(1, round(k if k >= 1 else k * (len(drawn) - 1))), len(drawn) - 1)
    if len(drawn) < 2:
        return -torch.ones(len(points))
    others = normalize(points.take(drawn).float(), dim=1)
    own = Rows([others])
    radius = torch.cat([block.kthvalue(k, dim=1).values for block in _distances(own, others)])
    density = torch.cat([_lrd(block, block.kthvalue(k, dim=1).values, radius) for block in _distances(own, others)])
    scores = []
    for block in _distances(points, others, drawn):
        last = block.kthvalue(k, dim=1).values
        inside = (block <= last[:, None]).float()
        scores.append(-(inside @ density) / inside.sum(dim=1) / _lrd(block, last, radius))
    return torch.cat(scores)


def _distances(points: Rows, others: Tensor, drawn: Tensor | None = None) -> Iterator[Tensor]:
    """Yields, block by block, distances (n, M) to all others; an image is infinitely far from itself."""
    places, start = torch.arange(len(points)) if drawn is None else drawn, 0
    for block in points.blocks(BLOCK):
        block = normalize(block.float(), dim=1)
        distances = (2 - 2 * block @ others.T).clamp_min(CLOSE**2).sqrt()  # (n, q) @ (q, M) -> (n, M)
        itself = torch.arange(start, start := start + len(block))[:, None] == places
        yield distances.masked_fill(itself, torch.inf)


def _lrd(distances: Tensor, last: Tensor, radius: Tensor) -> Tensor:
    """Returns the local reachability density (n,) from distances (n, M), the k-th smallest (n,), and the others' radii (M,)."""
    inside = distances <= last[:, None]
    reachable = distances.maximum(radius).where(inside, 0).sum(dim=1)
    return inside.sum(dim=1) / reachable.clamp_min(1e-10)
