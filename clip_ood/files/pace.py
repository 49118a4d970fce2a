"""Notices a connection that is alive, and so slow that what it brings would never be there."""

from __future__ import annotations

import time

SPAN = 60.0  # seconds over which a pace is measured


class TooSlow(Exception):
    """In the last `SPAN` seconds, fewer bytes came than should have."""


class Pace:
    """The bytes a second that come, which are to be no fewer than `least` in each span of time."""

    def __init__(self, least: int) -> None:
        self.least, self.since, self.came = least, time.monotonic(), 0

    def add(self, count: int) -> None:
        """Counts bytes that came. Raises: TooSlow."""
        self.came += count
        if (passed := time.monotonic() - self.since) < SPAN:
            return
        if self.came < self.least * passed:
            raise TooSlow
        self.since, self.came = time.monotonic(), 0
