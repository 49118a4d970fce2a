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


@dataclass(frozen=True)
class Ranking:
    """score (N,), a fraction, higher means more in-distribution; the groups that lie apart, the farthest first; and the scores (N,)
    by name that `score` joins. Copies have the values of their group's first image, and are in the groups as well."""

    score: np.ndarray
    groups: list[Group]
    scores: dict[str, np.ndarray]


def rank_images(features: Rows, first: np.ndarray) -> Ranking:
    """Ranks images by their features (N, D); first (N,): for each image the place of the first image of its group of copies.

    Only the first images are compared with each other, so that copies never vouch for each other. Raises: UserError for NaN.
    """
    kept = np.flatnonzero(first == np.arange(len(first)))
    if not len(kept):
        return Ranking(np.empty(0), [], {})
    of = np.searchsorted(kept, first)
    space = principal(features.subset(torch.from_numpy(kept)))
    joined = joining(spanning_tree(space.plain))
    scores = {"joining": joined.score, "density": local_density(space.white).cpu().numpy().astype(np.float64)}
    groups = [Group(np.flatnonzero(np.isin(of, each.images)), each.apart) for each in groups_apart(joined)]
    return Ranking(consensus(scores)[of], groups, {name: values[of] for name, values in scores.items()})
