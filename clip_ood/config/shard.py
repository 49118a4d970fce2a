"""The shard of the inputs that one of several processes judges, each on its own: --shard I/N."""

from __future__ import annotations

import argparse
import re
from typing import NamedTuple


class Shard(NamedTuple):
    """Shard `number` (0, 1, …) of `of`: it has the parts of the inputs number, number + of, number + 2 · of, …"""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


WHOLE = Shard(0, 1)


def read_shard(text: str) -> Shard:
    """Returns what I/N stands for. Raises: ArgumentTypeError.

    >>> read_shard("2/8")
    Shard(number=2, of=8)
    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} must be I/N, as 0/8 for the first of 8 shards")
    number, of = map(int, found.groups())
    if number >= of:
        raise argparse.ArgumentTypeError(
            f"{text}: shards count from 0, so that those of {of} are 0/{of} to {of - 1}/{of}"
            if of
            else f"{text}: inputs are divided into 1 shard or more"
        )
    return Shard(number, of)
