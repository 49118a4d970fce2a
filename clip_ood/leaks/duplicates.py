"""Chooses the copies to take out, so that no image is scored that was learnt from, and none twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from clip_ood.errors import ConfigError
from clip_ood.features.identity import originals
from clip_ood.leaks.copies import TESTED, Copies, ImageSet

KEY = "data.drop_duplicates"


def dropped(
    sets: Sequence[ImageSet], copies: Sequence[Copies], drop: Literal["tested", "bank"]
) -> dict[str, np.ndarray]:
    """Returns by set the rows of the images to take out, in ascending order; near copies stay.

    `tested` takes from each tested set the images that are also in an earlier set of another role, and all but the first of equal
    images. `bank` takes from the training images those that are also in any other set, and all but the first of equal images.
    """
    out = (_of_tested if drop == "tested" else _of_training)(sets, [each for each in copies if each.kind != "near"])
    return {name: found for name, rows in out.items() if len(found := np.unique(np.concatenate(rows)))}


def check_left(sets: Sequence[ImageSet], out: Mapping[str, np.ndarray], drop: str) -> None:
    """Raises ConfigError for a set that no image would be left of."""
    for each in sets:
        if len(each) and len(out.get(each.name, ())) == len(each):
            told = "its only image is a copy" if len(each) == 1 else f"all of its {len(each):,} images are copies"
            raise ConfigError(
                f"{KEY}: {drop} would leave no image of {each.name}: {told} of images of other sets. Name other images for it, or "
                f"leave {KEY} out"
            )


def _of_tested(sets: Sequence[ImageSet], copies: Sequence[Copies]) -> dict[str, list[np.ndarray]]:
    roles = {each.name: each.role for each in sets}
    out = {each.name: [] for each in sets if each.role in TESTED}
    for each in copies:
        if each.later in out and (each.earlier == each.later or roles[each.earlier] != roles[each.later]):
            out[each.later].append(each.rows)
    for each in sets:
        if each.corrupted:  # stays in step with the set that it is made of
            out[each.name].append(each.rows[originals(each.contents) != np.arange(len(each))])
    return {name: rows for name, rows in out.items() if rows}


def _of_training(sets: Sequence[ImageSet], copies: Sequence[Copies]) -> dict[str, list[np.ndarray]]:
    out = {each.name: [] for each in sets if each.role == "train"}
    for each in copies:
        if each.earlier in out:
            out[each.earlier].append(each.rows if each.later == each.earlier else each.originals)
    return {name: rows for name, rows in out.items() if rows}
