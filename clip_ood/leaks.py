"""Finds images that are in two sets of one run, by their content: what is scored must not be what was learnt from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from clip_ood.features.identity import find

SHOWN = 3  # pairs of sets that the line names


@dataclass(frozen=True)
class Shared:
    """`images` of the `total` images of the set `later` are also images of the set `earlier`."""

    earlier: str
    later: str
    images: int
    total: int


def shared_images(sets: Mapping[str, tuple[str, np.ndarray]]) -> list[Shared]:
    """Returns the pairs of sets of different roles that share images, in the order of the sets.

    `sets` holds, by name, the role of a set and the identities (N, 2) of its images. Two sets of one role, such as two OOD sets,
    are scored alike, so what they share leaks nothing.

    >>> train, near = np.array([[1, 1], [2, 2]], np.uint64), np.array([[2, 2], [2, 2], [3, 3]], np.uint64)
    >>> shared_images({"train": ("train", train), "near": ("ood", near)})
    [Shared(earlier='train', later='near', images=2, total=3)]
    """
    halves = {name: identities[identities[:, 0].argsort()].T for name, (_, identities) in sets.items()}
    found = []
    for earlier, later in combinations(sets, 2):
        (role, _), (other, identities) = sets[earlier], sets[later]
        if role != other and (count := int((find(*halves[earlier], identities) >= 0).sum())):
            found.append(Shared(earlier, later, count, len(identities)))
    return found


def told(found: list[Shared]) -> str:
    """Returns one line about the images that sets share: how many, of which sets, and the way out."""
    listed = [
        f"{each.images:,} of the {each.total:,} images of {each.later} are also in {each.earlier}" for each in found
    ]
    more = f", and {len(listed) - SHOWN} more pairs of sets share some" if len(listed) > SHOWN else ""
    return (
        f"The same images stand in several sets: {', '.join(listed[:SHOWN])}{more}. Scores of such images say nothing about new "
        "ones: remove the copies, or name other images"
    )
