"""Gathers copies into groups, of which the first image stands for all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from clip_ood.leaks.copies import Copies


def first_copies(copies: Sequence[Copies], name: str, rows: np.ndarray) -> np.ndarray:
    """Returns for each image of a set the place of the first image of its group of copies (N,): its own unless it is a copy.

    Images are in one group if a chain of exact or near copies within the set `name` joins them. rows (N,) are the images' rows in
    the set, in ascending order; pairs with other rows are left out.
    """
    within = [each for each in copies if each.earlier == name == each.later and each.kind in ("exact", "near")]
    pairs = np.concatenate([np.empty((0, 2), int), *(np.stack([each.originals, each.rows], axis=1) for each in within)])
    pairs = pairs[np.isin(pairs, rows).all(axis=1)]
    one, other = np.searchsorted(rows, pairs).T
    links = coo_array((np.ones(len(pairs), bool), (one, other)), shape=(len(rows), len(rows)))
    _, group = connected_components(links, directed=False)
    _, first = np.unique(group, return_index=True)
    return first[group]


def other_copies(first: np.ndarray) -> np.ndarray:
    """Returns how many other images are copies of each (N,), from the places of the groups' first images (N,).

    >>> other_copies(np.array([0, 1, 0, 0]))
    array([2, 0, 2, 2])
    """
    return np.bincount(first, minlength=len(first))[first] - 1
