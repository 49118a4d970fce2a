"""Says what it means for a comparison with published numbers that a set is not as it was published."""

from __future__ import annotations

from collections.abc import Sequence

FEW = 0.01  # share of missing images up to which it is told how far a number may be off; an AUROC is compared to a point or less
NOT_COMPARABLE = "what is measured on it cannot be compared with published numbers"


def of_count(found: int, published: int) -> str:
    """Says what another number of images than was published means.

    If a share f of a set's images is missing, its AUROC over all is (1 - f) · (that of the rest) + f · (that of the missing), which
    lies between 0 and 1: both differ by f at most.

    >>> of_count(9_990, 10_000)
    '10 (0.1 %) are missing, as where a publisher removed images: an AUROC over the rest differs from one over all by at most 0.1 points'
    """
    if found > published:
        return f"It is another version of the set, or holds copies: {NOT_COMPARABLE}"
    missing = published - found
    share, are = missing / published, "is" if missing == 1 else "are"
    if share <= FEW:
        return (
            f"{missing:,} ({100 * share:.2g} %) {are} missing, as where a publisher removed images: an AUROC over the rest differs from "
            f"one over all by at most {100 * share:.2g} points"
        )
    percent = min(99, round(100 * share)) if found else 100
    return f"{missing:,} ({percent} %) {are} missing, as of a download that did not end: {NOT_COMPARABLE}"


def of_list(lines: int, published: int) -> str:
    """Says what another number of lines in an image list than was published means."""
    return f"lists {lines:,} images, and the published list has {published:,}: it is another version of the list, and {NOT_COMPARABLE}"


def of_classes(missing: Sequence[str], wanted: int, others: Sequence[str], most: int = 5) -> str:
    """Says which of the `wanted` classes of a set are not there, and which `others` are there that may be they under another name."""
    are = "is" if len(missing) == 1 else "are"
    told = f"{len(missing):,} of {wanted:,} classes {are} not there ({_listed(missing, most)})"
    if others:
        more = "another is" if len(others) == 1 else f"{len(others):,} others are"
        told += f", and {more} ({_listed(others, most)}), perhaps renamed on disk"
    return f"{told}. Without them, {NOT_COMPARABLE}"


def _listed(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
