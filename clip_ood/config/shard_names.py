"""Expands the pattern that names the shards of an image set."""

from __future__ import annotations

import re
from pathlib import Path

from clip_ood.errors import ConfigError, shortened

LONGEST_NUMBER = 18  # digits of a shard's number
MOST_SHARDS = 100_000


def shard_paths(pattern: Path) -> list[Path]:
    """Returns the files that `name-{000..009}.tar` stands for: at most one range, with digits as wide as its first number.

    >>> [path.name for path in shard_paths(Path("a-{08..10}.tar"))]
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    """
    found = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", pattern.name)
    if found is None:
        return [pattern]
    before, first, last, after = found.groups()
    if max(len(first), len(last)) > LONGEST_NUMBER:
        raise ConfigError(f"shards: the numbers in {shortened(str(pattern))} have over {LONGEST_NUMBER} digits")
    if int(first) > int(last):
        raise ConfigError(f"shards: {pattern} counts down from {first} to {last}; write the smaller number first")
    if int(last) - int(first) >= MOST_SHARDS:
        raise ConfigError(f"shards: {pattern} stands for more than {MOST_SHARDS:,} files")
    return [pattern.with_name(f"{before}{number:0{len(first)}d}{after}") for number in range(int(first), int(last) + 1)]
