"""Links all images of a folder by the shortest links that join them: single linkage in memory linear in their number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from clip_ood.detectors.neighbours import nearest

NEIGHBOURS = 3  # within which an image must have others before it links any


@dataclass(frozen=True)
class SpanningTree:
    """The minimum spanning tree of N images under the distance d(i, j) = max(r_i, r_j, 1 − cos(i, j)), mutual reachability.

    Attributes: reach (N,) is r_i, 1 − the cosine of image i to its NEIGHBOURS-th nearest; one, other (N − 1,) are the ends of each
    link, and length (N − 1,) its d. Campello et al., Density-Based Clustering Based on Hierarchical Density Estimates, 2013.
    """

    reach: np.ndarray
    one: np.ndarray
    other: np.ndarray
    length: np.ndarray

    def matrix(self, longest: float = np.inf) -> csr_array:
        """Returns links (N, N) that are at most this long, as numbers from 1 on."""
        kept = np.flatnonzero(self.length <= longest)
        shape = (len(self.reach), len(self.reach))
        return coo_array((kept + 1, (self.one[kept], self.other[kept])), shape=shape).tocsr()

    def parts(self, longest: float) -> np.ndarray:
        """Returns the number (N,) of the part that each image is in, if links longer than this are cut."""
        return connected_components(self.matrix(longest), directed=False)[1]


def spanning_tree(points: Tensor) -> SpanningTree:
    """Returns the tree of images at points (N, q) of unit norm, by Prim's algorithm: N² q products, memory for N numbers."""
    size = len(points)
    reach = _reach(points)
    free, best = reach.clone(), torch.full_like(reach, torch.inf)
    linked = torch.zeros(size, dtype=torch.int64, device=points.device)
    one, other, length = np.empty(size - 1, np.int64), np.empty(size - 1, np.int64), np.empty(size - 1)
    image = 0
    for step in range(size - 1):
        free[image] = best[image] = torch.inf  # what is in the tree is linked no more
        distance = (1 - points @ points[image]).maximum(free).maximum(reach[image])  # (N, q) @ (q,) -> (N,)
        closer = distance < best
        best, linked = torch.where(closer, distance, best), torch.where(closer, image, linked)
        image = int(best.argmin())
        one[step], other[step], length[step] = int(linked[image]), image, float(best[image])
    return SpanningTree(reach.cpu().numpy(), one, other, length)


def _reach(points: Tensor) -> Tensor:
    """Returns 1 − the cosine (N,) of each image to its NEIGHBOURS-th nearest, or to the last if there are fewer."""
    cosines, _ = nearest(points, [points], min(NEIGHBOURS + 1, len(points)))  # itself is one
    return (1 - cosines[:, -1]).clamp_min(0)
