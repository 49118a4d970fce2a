"""Finds copies that are equal byte for byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from clip_ood.features.identity import originals
from clip_ood.leaks.copies import HELD_OUT, Copies, ImageSet


def exact_copies(sets: Sequence[ImageSet]) -> list[Copies]:
    """Returns the copies in each pair of sets and within each set, in the order of the sets.

    An image of the later set is listed once for each earlier set that holds it, beside the first of its copies there. Within a set
    all but the first of equal images are copies. A corrupted image is a copy of nothing; it is listed as `corrupted` if the image
    that it is made of is one to train on, to calibrate or to choose by.
    """
    if not sets:
        return []
    first = originals(np.concatenate([each.contents for each in sets]))
    has_copies = np.bincount(first, minlength=len(first)) > 1
    found, places = [], []
    for groups in np.split(first, np.cumsum([len(each) for each in sets])[:-1]):
        places.append(np.flatnonzero(has_copies[groups]))
        found.append(groups[places[-1]])
    return [_copies(sets, places, found, *pair) for pair in _pairs(sets) if _share(found, *pair)]


def _pairs(sets: Sequence[ImageSet]) -> Iterator[tuple[int, int]]:
    for one, earlier in enumerate(sets):
        for other, later in enumerate(sets[one:], start=one):
            if not earlier.corrupted and (not later.corrupted or earlier.role in ("train", *HELD_OUT)):
                yield one, other


def _share(groups: list[np.ndarray], one: int, other: int) -> bool:
    if one == other:
        return len(np.unique(groups[one])) < len(groups[one])
    return bool(np.isin(groups[other], groups[one]).any())


def _copies(
    sets: Sequence[ImageSet], places: list[np.ndarray], groups: list[np.ndarray], one: int, other: int
) -> Copies:
    """Joins two sets by `groups`, a number for the content of each of those images, at `places`, that have copies anywhere."""
    known, first = np.unique(groups[one], return_index=True)
    at = np.searchsorted(known, groups[other]).clip(max=len(known) - 1)
    is_copy = known[at] == groups[other]
    if one == other:
        is_copy &= first[at] != np.arange(len(at))
    earlier, later = sets[one], sets[other]
    originals = earlier.rows[places[one][first[at[is_copy]]]]
    rows = later.rows[places[other][is_copy]]
    kind = "corrupted" if later.corrupted else "exact"
    return Copies(earlier.name, later.name, kind, len(later), originals, rows, np.ones(len(rows)))
