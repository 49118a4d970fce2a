"""Images that are drawn at random among those that nobody has reviewed, and what their review says about the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clip_ood.metrics.intervals import clopper_pearson, interval_told
from clip_ood.review.decisions import DRAWN, Decision


@dataclass(frozen=True)
class Draw:
    """A random draw: the identities of the images that were drawn, and the number that they were drawn from."""

    images: tuple[str, ...]
    among: int


def draws(lines: Sequence[Decision]) -> list[Draw]:
    """Returns the draws in their order. The lines of one draw stand together and have one time."""
    found: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        if line.decision == DRAWN and line.among.isdecimal():
            found.setdefault((line.time, line.among), []).append(line.image)
    return [Draw(tuple(images), int(among)) for (_, among), images in found.items()]


def rate_told(draw: Draw, judged: int, odd: int) -> str:
    """Says what a draw tells of the images that were not drawn; `judged` of its images were kept, relabelled or rejected, `odd` rejected.

    While some are not judged nothing is stated: those that are easy to judge need not be like the others.
    """
    n = len(draw.images)
    if judged < n:
        return (
            f"{judged:,} of {n:,} drawn images are judged, {odd:,} of them odd. Judge the others as well, since nothing follows from a part "
            "of a draw."
        )
    low, high = clopper_pearson(odd, n)
    rest = draw.among - n
    return (
        f"Of {n:,} images drawn at random among the {draw.among:,} that nobody had reviewed, {odd:,} were odd: {100 * odd / n:.1f} % "
        f"({interval_told(odd, n)}). Of the {rest:,} others, that would be {low * rest:,.0f} to {high * rest:,.0f}."
    )


def suspects_told(reviewed: int, odd: int) -> str:
    """Says what the review of suspects tells: nothing about other images."""
    if not reviewed:
        return ""
    return (
        f"Of the first {reviewed:,} images reviewed, {odd:,} were odd. They were looked at because they were suspect, so nothing follows "
        "for the rest: a random draw tells that."
    )
