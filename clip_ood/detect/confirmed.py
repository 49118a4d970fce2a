"""Chooses the images that set a detector's thresholds anew: those that a person confirmed as ID, whether they had been flagged or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clip_ood.calibration import Calibration, needed
from clip_ood.errors import UserError
from clip_ood.review.decisions import Counting

CONFIRMING = ("keep", "relabel")  # decisions by which an image is ID
SELDOM = 0.01  # a chance below it is none
TRUNCATED = (
    "accepted images alone are a truncated sample: their scores lie above the old threshold, so that the new one would be too high and "
    "would flag more ID images than stated"
)


@dataclass(frozen=True)
class JudgedImage:
    """An image that a person has looked at, as the saved detectors judge it.

    Attributes: path; content, its identity in hex digits; scores and is_ood, by detector; predicted, the class, None for none; is_known,
    whether the detectors have learnt from it.
    """

    path: str
    content: str
    scores: Mapping[str, float]
    is_ood: Mapping[str, bool]
    predicted: str | None = None
    is_known: bool = False


@dataclass(frozen=True)
class Confirmed:
    """The images that calibrate, and how many others were left out, by the reason."""

    images: tuple[JudgedImage, ...]
    left_out: Mapping[str, int]


def confirmed(images: Sequence[JudgedImage], decisions: Counting | None = None, file: Path | None = None) -> Confirmed:
    """Returns the images that were confirmed as ID; without `decisions` (of `file`) all of them were.

    Images that the detectors have learnt from are left out, and so is each further copy of an image.
    Raises: UserError for an image that nobody has decided about, since it may be missing because it was flagged.
    """
    found: dict[str, JudgedImage] = {}
    out: Counter[str] = Counter()
    undecided = []
    for each in images:
        line = None if decisions is None else decisions.about(each.content, each.path)
        if each.is_known:
            out["learnt from"] += 1
        elif each.content in found:
            out["copies"] += 1
        elif decisions is not None and (line is None or line.decision == "skip"):
            undecided.append(each)
        elif line is not None and line.decision not in CONFIRMING:
            out["rejected"] += 1
        else:
            found[each.content] = each
    if undecided:
        raise UserError(
            f"{len(undecided):,} of {len(images):,} images have no decision in {file} (the first: {undecided[0].path}). If they were left "
            "out, whether an image calibrates could depend on its score: decide about each of them (keep, relabel or reject)"
        )
    return Confirmed(tuple(found.values()), dict(out))


def check_not_truncated(images: Sequence[JudgedImage], old: Mapping[str, Calibration], accept: float) -> None:
    """Raises UserError if the old thresholds of a detector flag none of the images that a person has looked at, odd ones too, although
    this would happen by chance in less than one of a hundred cases (over all detectors)."""
    new = [each for each in images if not each.is_known]
    for name, calibration in old.items():
        chance = calibration.chance_of_none(len(new), accept)
        if chance < SELDOM / len(old) and not any(each.is_ood[name] for each in new):
            raise UserError(
                f"{name} flags none of these {len(new):,} images, although about {(1 - accept) * len(new):.0f} ID images are flagged among as "
                f"many (the chance of none is {chance:.1g}). They look like images that were accepted, and {TRUNCATED}. Add the images "
                "that were flagged, with odd ones too: then --decisions FILE says which are ID (keep, relabel) and which are not (reject)"
            )


def check_enough(found: Confirmed, accept: float) -> None:
    """Raises UserError if too few images are left for a threshold."""
    if len(found.images) < needed(accept):
        left_out = "".join(f", {number:,} {why}" for why, number in found.left_out.items())
        raise UserError(
            f"Accepting {100 * accept:g} % of ID images takes {needed(accept)} confirmed images or more, and there are "
            f"{len(found.images)}{f' (left out{left_out})' if left_out else ''}: name more"
        )
