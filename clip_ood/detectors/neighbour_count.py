"""The number of neighbours, asked for as a number or as a share of the bank."""

from __future__ import annotations

from clip_ood.errors import UserError

MOST = 500  # neighbours that a share stands for: time and memory must not grow with the square of the bank


def check_count(detector: str, k: float) -> None:
    """Raises ValueError for what is neither a whole number from 1 on nor a share between 0 and 1."""
    if not (k >= 1 if type(k) is int else type(k) is float and 0 < k < 1):
        raise UserError(
            f"{detector}: k = {k}, expected a whole number from 1 on, or a share of the bank between 0 and 1"
        )


def count_of(k: float, size: int) -> int:
    """Returns the number of neighbours that k stands for in a bank of `size` rows: a share is rounded, to 1 … size − 1 and at most `MOST`.

    >>> count_of(5, 154), count_of(0.05, 154), count_of(0.999, 154), count_of(0.05, 2), count_of(0.2, 1_281_167)
    (5, 8, 153, 1, 500)
    """
    return k if isinstance(k, int) else max(1, min(round(k * size), size - 1, MOST))


def told(k: float, size: int) -> list[str]:
    """Returns what the results table says of a share: the number that it stands for."""
    if isinstance(k, int):
        return []
    count = count_of(k, size)
    bound = f" (at most {MOST:,})" if count == MOST else ""
    return [f"k = {count:,}, {k:g} of the {size:,} ID training images{bound}"]
