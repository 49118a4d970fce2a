"""Decides how many images of a set may be unreadable before the work on it stops, and words what is said of them."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor

from clip_ood.errors import UserError
from clip_ood.terminal.shown import one_line

LEAST = 5  # images that may be unreadable in any set, however small
SHARE = 0.01
SHOWN = 10  # reasons that are shown in the terminal


class Passing(str):
    """The reason why an image could not be read this time; it says nothing of the image, so that a later call tries again."""


NO_MEMORY = Passing("there was not enough memory for it")
OF_THE_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EFBIG, errno.ENAMETOOLONG, errno.ELOOP)
OPEN_FILES = (errno.EMFILE, errno.ENFILE)


def check_of_file(error: OSError) -> None:
    """Raises an error again if it is not about the file but about this process, which has too many files open."""
    if error.errno in OPEN_FILES:
        raise error


def is_no_memory(error: Exception) -> bool:
    """Says whether there was not enough memory to read something: NumPy and Pillow raise MemoryError, torch says it in words."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        return True
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


class TooManyUnreadable(UserError):
    """More images of a set are unreadable than may be."""


@dataclass(frozen=True)
class Tolerance:
    """The largest number of unreadable images: max(share · n, 5) of n images; `key` is the key that sets the share."""

    share: float = SHARE
    key: str = "data.max_unreadable"

    def allowed(self, total: int) -> int:
        """Returns how many of `total` images may be unreadable.

        >>> [Tolerance(0.01).allowed(total) for total in (10, 599, 600, 50_000)]
        [5, 5, 6, 500]
        """
        return max(floor(Fraction(str(self.share)) * total), LEAST)

    def check(self, name: str, total: int, found: Sequence[tuple[str, str]], listed: str | None = None) -> None:
        """Raises TooManyUnreadable if more images of the set `name` are unreadable than its `total` images allow.

        `found` holds the path and reason of each unreadable image so far; `listed` is the file that lists all of them.
        """
        if len(found) <= (most := self.allowed(total)):
            return
        lines = [
            f"{name}: {len(found):,} of {total:,} images cannot be read, and {most:,} may be ({self.key} = {self.share:g}, and "
            f"{LEAST} in any set):",
            *first_of(found),
            f"{f'All of them are listed in {listed}. ' if listed else ''}Mend or remove them, or raise {self.key}",
        ]
        raise TooManyUnreadable("\n".join(lines))


def first_of(found: Sequence[tuple[str, str]]) -> list[str]:
    """Returns the first ten paths and reasons as lines for a terminal, and how many more there are."""
    lines = [f"  {one_line(path)}: {one_line(reason)}" for path, reason in found[:SHOWN]]
    return lines + ([f"  and {len(found) - SHOWN:,} more"] if len(found) > SHOWN else [])
