"""Finds groups of images that lie apart from all others, however alike the images of such a group are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse.csgraph import breadth_first_order

from clip_ood.folder.spanning_tree import NEIGHBOURS, SpanningTree

LEAST = NEIGHBOURS + 1  # images of a group
CLOSE = 1e-3  # distances below this count as this one
FAR = 1.5
"""How far apart a group must lie to be listed. In 30 folders of photographs without odd ones (six of the demo's nine ID classes, or 120 of its
154 ID images) no group lay farther apart than 1.47; groups of odd images that are all alike, at 10 and 20 % of a folder, lay at 3.8 to 6."""


@dataclass(frozen=True)
class Joining:
    """How each of N images joins the main part of its folder, which is the first part to hold more than half of all images while
    links are made from the shortest on.

    Attributes: height (N,) is the length of the longest link between an image and the main part, a link at a time, and half for the
    images of the main part itself; group (N,) is the number of the images that join by the same link, and −1 in the main part;
    half is the length of the link that completed the main part; reach (N,) is the tree's.
    """

    height: np.ndarray
    group: np.ndarray
    half: float
    reach: np.ndarray

    @property
    def score(self) -> np.ndarray:
        """The score (N,), higher means more in-distribution: −height, and among images of the same height −reach."""
        return -self.height - CLOSE * self.reach


@dataclass(frozen=True)
class Group:
    """m images that join the main part together: their places (m,), and how far they lie `apart` from all others."""

    images: np.ndarray
    apart: float


def joining(tree: SpanningTree) -> Joining:
    """Returns how the images of a tree join its main part.

    A group of images joins at the height of its one link to the others, however short the links within it are. So images of a
    small group cannot vouch for each other.
    """
    half = _half(tree)
    parts = tree.parts(half)
    sizes = np.bincount(parts)
    main = parts == sizes.argmax()
    order, before = breadth_first_order(tree.matrix(), int(main.argmax()), directed=False)
    length = np.empty(len(main))
    length[np.where(before[tree.other] == tree.one, tree.other, tree.one)] = (
        tree.length
    )  # of the link to the one before
    height, group = np.full(len(main), half), np.full(len(main), -1)
    for image in order[~main[order]].tolist():
        earlier = before[image]
        is_new = length[image] > height[earlier]
        height[image] = length[image] if is_new else height[earlier]
        group[image] = image if is_new else group[earlier]
    return Joining(height, group, half, tree.reach)


def groups_apart(found: Joining) -> list[Group]:
    """Returns the groups of at least LEAST images outside the main part that lie at least FAR apart, the farthest first.

    apart = (h / h₀) · (h / r)^¼, where h is the height at which the group joins, h₀ the one at which more than half of all images
    are one part, and r the median reach within the group. The first factor says how much farther away the group lies than is usual in
    this folder, the second prefers groups that are tight, weakly, because tight groups of images that belong are not rare.
    """
    outside = np.flatnonzero(found.group >= 0)
    order = outside[np.argsort(found.group[outside], kind="stable")]
    starts = np.flatnonzero(np.diff(found.group[order], prepend=-1))
    members = [part for part in np.split(order, starts[1:]) if len(part) >= LEAST]
    listed = [each for part in members if (each := Group(part, _apart(found, part))).apart >= FAR]
    return sorted(listed, key=lambda each: (-each.apart, each.images[0]))


def _apart(found: Joining, images: np.ndarray) -> float:
    height = max(found.height[images[0]], CLOSE)
    return float(height / max(found.half, CLOSE) * (height / max(np.median(found.reach[images]), CLOSE)) ** 0.25)


def _half(tree: SpanningTree) -> float:
    """Returns the length of the shortest link with which a part holds more than half of the images; 0 for one image."""
    lengths = np.unique(tree.length)
    low, high = 0, len(lengths) - 1
    while low < high:
        middle = (low + high) // 2
        if 2 * np.bincount(tree.parts(lengths[middle])).max() > len(tree.reach):
            high = middle
        else:
            low = middle + 1
    return float(lengths[low]) if len(lengths) else 0.0
