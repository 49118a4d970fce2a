"""Which detector flags most of some labelled odd images, and how many it flags that did not help to choose it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clip_ood.metrics.intervals import share_told

Patterns = Mapping[tuple[bool, ...], int]  # which of K detectors flag an image -> the number of such images


def flagged(patterns: Patterns, place: int) -> int:
    """Returns the number of images that the detector at this place flags."""
    return sum(number for flags, number in patterns.items() if flags[place])


def most_flagging(patterns: Patterns) -> int:
    """Returns the place of the detector that flags most images (of equal ones the first)."""
    return max(range(len(next(iter(patterns)))), key=lambda place: flagged(patterns, place))


def flagged_by_leave_one_out(patterns: Patterns) -> int:
    """Returns the number of images that are flagged by the detector that flags most of all others.

    The detector is chosen anew for each image, without it.

    >>> flagged_by_leave_one_out({(True, False): 2, (False, True): 2})
    0
    """
    found = 0
    for flags, number in patterns.items():
        others = {each: count - (each == flags) for each, count in patterns.items()}
        found += number * flags[most_flagging(others)]
    return found


def choice_told(columns: Sequence[str], patterns: Patterns) -> str:
    """Says which detector flags most odd images, and of how many that choice is right by leave-one-out."""
    n = sum(patterns.values())
    return (
        f"{columns[most_flagging(patterns)]} flags most of the odd images. If you choose it for that, its share above is too high, since "
        f"these images have chosen it. By leave-one-out, chosen without an image and then asked about it, the choice flags "
        f"{share_told(flagged_by_leave_one_out(patterns), n)}; the interval assumes independent choices, so that it is approximate"
    )
