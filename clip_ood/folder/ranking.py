"""Ranks all images of a folder by one score that also counts groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from clip_ood.features.rows import Rows
from clip_ood.folder.consensus import consensus
from clip_ood.folder.density import local_density
from clip_ood.folder.groups import Group, groups_apart, joining
from clip_ood.folder.principal import principal
from clip_ood.folder.spanning_tree import spanning_tree

NEAR, WIDE = 10, 0.3  # neighbours, and a share of all images


@dataclass(frozen=True)
class Ranking:
    """score (N,), a fraction, higher means more in-distribution; the groups that lie apart, the farthest first; and the scores (N,)
    by name that `score` joins. Copies have the values of their group's first image, and are in the groups as well."""

    score: np.ndarray
    groups: list[Group]
    scores: dict[str, np.ndarray]


def rank_images(features: Rows, first: np.ndarray) -> Ranking:
    """Ranks images by their features (N, D); first (N,): for each image the place of the first image of its group of copies.

    The images of groups that lie apart come first, the farthest group before the others, since they lie apart together even where each
    looks at home among its own. All others are ranked by the consensus of three scores: how far an image lies from the bulk of the
    folder (`joining`), and its local outlier factor with few neighbours (NEAR) and, on whitened components, with many (WIDE). Only the
    first images are compared with each other, so that copies never vouch for each other. Raises: UserError for NaN.
    """
    kept = np.flatnonzero(first == np.arange(len(first)))
    if not len(kept):
        return Ranking(np.empty(0), [], {})
    of = np.searchsorted(kept, first)
    own = features.subset(torch.from_numpy(kept))
    space = principal(own)
    joined = joining(spanning_tree(space.plain))
    # rounded, because sums of equal distances differ in their last digits
    density = {"near": local_density(own, NEAR), "wide": local_density(Rows([space.white]), WIDE)}
    scores = {"joining": joined.score} | {name: each.double().numpy().round(6) for name, each in density.items()}
    groups = [Group(np.flatnonzero(np.isin(of, each.images)), each.apart) for each in groups_apart(joined)]
    score = _groups_first(consensus(scores)[of], groups)
    return Ranking(score, groups, {name: values[of] for name, values in scores.items()})


def _groups_first(score: np.ndarray, groups: list[Group]) -> np.ndarray:
    """Returns scores in (0, 1) in the same order, but for the images of groups, which are below all others, group by group."""
    found, outside = score.copy(), np.ones(len(score), bool)
    for group in groups:
        outside[group.images] = False
    lowest = score[outside].min(initial=1.0)
    for number, group in enumerate(groups):
        found[group.images] = lowest * (number + score[group.images]) / len(groups)
    return found
