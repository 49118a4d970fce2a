"""Watches the images that detect.py judges as a stream (--watch), and says whether it has changed."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from clip_ood.detect.saved import SavedDetector
from clip_ood.detect.watch_file import Watch, watching
from clip_ood.terminal.shown import one_line, say

if TYPE_CHECKING:
    from clip_ood.callbacks.prediction_writer import Line
    from clip_ood.experiments.detect import Request

IMAGES, SECONDS = 1000, 10.0  # after which what is printed is in the file, too


class Watched:
    """Takes the lines of judged images in their order, and their scores by the first detector into the watch.

    Images that are copies of the run's own are left out, because their scores are not those of new images. If predictions are printed
    (`at_once`), the file is written every thousand images or ten seconds, so that a stream needs no end; otherwise by `save` alone.
    """

    def __init__(self, watch: Watch, shown: Path, at_once: bool) -> None:
        self.watch, self.shown, self.at_once = watch, shown, at_once
        self.new = self.copies = 0
        self._held: list[float] = []
        self._paths: list[str] = []
        self._saved, self._due = time.monotonic(), False

    def after(self, take: Callable[[Line], None]) -> Callable[[Line], None]:
        """Returns what takes a line by `take` first, and then watches it."""

        def both(line: Line) -> None:
            take(line)
            self.take(line)
            self.save_if_due()

        return both

    def take(self, line: Line) -> None:
        """Watches a line, soon; `catch_up` watches those that it keeps."""
        if "error" in line or line["detector"] != self.watch.header.column:
            return
        if line["copy_of"] is not None:
            self.copies += 1
            return
        self._held.append(line["score"])
        self._paths.append(line["path"])
        if len(self._held) >= IMAGES:
            self.catch_up()
            self._due = True

    def save_if_due(self) -> None:
        """Writes the file if predictions are printed and its time has come. Raises: OSError if it cannot be written."""
        if self.at_once and (self._due or time.monotonic() - self._saved > SECONDS):
            self.save()

    def catch_up(self) -> None:
        """Watches what is held."""
        martingale, before = self.watch.martingale, self.watch.martingale.seen
        known, scores, paths = martingale.alarm, self._held, self._paths
        self._held, self._paths = [], []
        self.watch.take(scores)
        self.new += len(scores)
        if known is None and martingale.alarm is not None:
            where = paths[martingale.alarm - 1 - before]
            tell(
                f"ALARM of --watch {self.shown}: after image {martingale.alarm:,} of the stream, {where}, the martingale reached "
                f"{1 / martingale.delta:g}: the images are not drawn as those that calibrated {self.watch.header.column}, or not one by one"
            )

    def save(self) -> None:
        """Watches what is held, and writes the file if any image of this call is in the watch."""
        self.catch_up()
        self._saved, self._due = time.monotonic(), False
        if self.new:
            self.watch.save()

    @property
    def alarmed(self) -> bool:
        """Whether the martingale has reached 1 / δ, now or in an earlier call."""
        return self.watch.martingale.alarm is not None

    def told(self) -> str:
        """Says what the martingale is, how high it was, and whether it has alarmed."""
        found = self.watch.martingale
        copies = f"; {self.copies:,} copies of the run's own images left out" if self.copies else ""
        highest = "its highest was 1, before the first image"
        if found.highest_at:
            highest = f"its highest was {power(found.highest)}, after image {found.highest_at:,}"
        limit = f"{1 / found.delta:g} (delta = {found.delta:g})"
        alarm = f"no alarm, which takes {limit}"
        if found.alarm is not None:
            alarm = f"ALARM: it reached {limit} after image {found.alarm:,}"
        return (
            f"Watch {self.shown}: {found.seen:,} images of the stream, {self.new:,} of them new{copies}; the martingale is "
            f"{power(found.log)}, and {highest}; {alarm}"
        )


def tell(line: str) -> None:
    """Prints a line on standard error, because a program may read standard output."""
    say(one_line(line), file=sys.stderr)


def power(log: float) -> str:
    """Returns e^log, which may be too large for a float, in three digits.

    >>> power(0.5), power(2000), power(-20)
    ('1.65', '10^869', '2.06e-09')
    """
    return f"{math.exp(log):.3g}" if log < 13 else f"10^{log / math.log(10):.0f}"


@contextmanager
def watched(request: Request, saved: SavedDetector, column: str) -> Iterator[Watched | None]:
    """Opens the watch that a request asks for, and keeps others from its file; None if it asks for none. Raises as `watching` does.

    What was printed when a call is stopped or fails is in the file.
    """
    if request.watch is None:
        yield None
        return
    with watching(request.watch, saved, column, request.delta) as watch:
        found = Watched(watch, request.watch, request.out is None)
        try:
            yield found
        except BaseException:
            if found.at_once:
                found.save()
            raise
