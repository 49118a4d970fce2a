"""Says that ranks or AUROCs of very few images mean little, and from how many images on they mean something.

Both are compared with what chance does where images do not differ at all: below `ORDERS` possible orders of the images, the most telling
one comes by chance more often than once in `ORDERS` times, the 5 % at which differences are usually taken seriously.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import comb
from typing import Any

ORDERS = 20


def ranks_caution(images: int) -> str | None:
    """Says why the ranks of so few images say little; None from `ORDERS` images on.

    >>> print(ranks_caution(8))
    These ranks say little: an image that is like all others is the most suspect of 8 by chance once in 8 times; from 20 images on, at most once in 20
    """
    if images >= ORDERS:
        return None
    return (
        f"These ranks say little: an image that is like all others is the most suspect of {images} by chance once in {images} "
        f"times; from {ORDERS} images on, at most once in {ORDERS}"
    )


def orders(n_id: float, n_ood: float) -> int:
    """Returns in how many orders ID and OOD images can come, C(n_id + n_ood, n_ood); only one of them has an AUROC of 100 %."""
    return comb(int(n_id) + int(n_ood), int(n_ood))


def auroc_cautions(sets: Iterable[tuple[str, float, float]]) -> list[str]:
    """Says of each set, by its name and the numbers of ID and OOD images, why an AUROC of so few images says little, if it does.

    >>> print(*auroc_cautions([("cars", 4, 2), ("faces", 3, 3)]))
    cars: its AUROC says little, since 2 OOD and 4 ID images that do not differ come in the best order, with an AUROC of 100, by chance once in 15 times; from 20 possible orders on (as of 3 and 3 images), at most once in 20
    """
    return [
        f"{name}: its AUROC says little, since {n_ood:g} OOD and {n_id:g} ID images that do not differ come in the best order, with an AUROC "
        f"of 100, by chance once in {orders(n_id, n_ood)} times; from {ORDERS} possible orders on (as of 3 and 3 images), at most once in "
        f"{ORDERS}"
        for name, n_id, n_ood in sets
        if orders(n_id, n_ood) < ORDERS
    ]


def held_out_cautions(held_out: Mapping[str, Any]) -> list[str]:
    """Does what `auroc_cautions` does, for the groups of classes that were held out."""
    return auroc_cautions((", ".join(each["classes"]), each["n_id"], each["n_ood"]) for each in held_out["groups"])
