"""Compares how dense each image's surroundings are with those of its neighbours: the local outlier factor."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SHARE = 0.3  # of the folder's images are an image's neighbours
MOST = 5_000  # images that others are compared with
BLOCK = 512  # images at once


def local_density(points: Tensor, share: float = SHARE, most: int = MOST) -> Tensor:
    """Returns −LOF_k (N,) of images at points (N, q) of unit norm, where k is a share of all others, from 1 on; higher means more
    in-distribution, and about −1 is usual.

    LOF_k(i) = mean of lrd(j) / lrd(i) over the k nearest j of i, 1 / lrd(i) = mean of max(r_j, ‖i − j‖), where r_j is the distance of j to
    its k-th nearest. A group of fewer than k images has no neighbourhood of its own. With more than `most` images, neighbours are sought among that
    many, evenly drawn: a share of them is the same share of all. One image alone has −1.
    Breunig et al., LOF: Identifying Density-Based Local Outliers, 2000.
    """
    drawn = torch.linspace(0, len(points) - 1, min(len(points), most)).round().long()
    k = max(1, round(share * (len(drawn) - 1)))
    if len(drawn) < 2:
        return -points.new_ones(len(points))
    others = points[drawn]
    radius = torch.cat([block.kthvalue(k, dim=1).values for block in _distances(others, others)])
    own = torch.cat([_lrd(block, block.kthvalue(k, dim=1).values, radius) for block in _distances(others, others)])
    scores = []
    for block in _distances(points, others, drawn):
        last = block.kthvalue(k, dim=1).values
        inside = (block <= last[:, None]).float()
        scores.append(-(inside @ own) / inside.sum(dim=1) / _lrd(block, last, radius))
    return torch.cat(scores)


def _distances(points: Tensor, others: Tensor, drawn: Tensor | None = None) -> Iterator[Tensor]:
    """Yields, block by block, distances (n, M) to all others; an image is infinitely far from itself."""
    places = torch.arange(len(points), device=points.device) if drawn is None else drawn.to(points.device)
    for start in range(0, len(points), BLOCK):
        block = (2 - 2 * points[start : start + BLOCK] @ others.T).clamp_min(0).sqrt()  # (n, q) @ (q, M) -> (n, M)
        itself = torch.arange(start, start + len(block), device=points.device)[:, None] == places
        yield block.masked_fill(itself, torch.inf)


def _lrd(distances: Tensor, last: Tensor, radius: Tensor) -> Tensor:
    """Returns the local reachability density (n,) from distances (n, M), the k-th smallest (n,), and the others' radii (M,)."""
    inside = distances <= last[:, None]
    reachable = distances.maximum(radius).where(inside, 0).sum(dim=1)
    return inside.sum(dim=1) / reachable.clamp_min(1e-10)
