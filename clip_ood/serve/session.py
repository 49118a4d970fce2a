"""A review of a run's images: what is looked at in which order, and what was decided, by this process and by others."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from clip_ood.errors import UserError
from clip_ood.review.decisions import DRAWN, KINDS, UNDO, Decision, counting
from clip_ood.review.decisions_file import append, read_decisions
from clip_ood.serve.drawn import Draw, draws, rate_told, suspects_told
from clip_ood.serve.run_suspects import Suspects

VIEWS = ("suspects", "groups", "duplicates", "labels", "draw", "decided")
JUDGED = ("keep", "reject", "relabel")


class NotDecided(UserError):
    """A decision cannot be taken; the message says why."""


@dataclass(frozen=True)
class Section:
    """Consecutive images of a view that belong together."""

    title: str
    first: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class State:
    """What the file of decisions says: lines that were cut, the decision about each row that has one (in the order of decisions), and
    the last draw; and `standing`, the decision about each content (or path), of images too that the run does not list any more."""

    cut: tuple[int, ...]
    of: Mapping[int, Decision]
    draw: Draw | None
    in_draws: frozenset[str]
    standing: Mapping[str, str]


class Review:
    """Suspects and the decisions about them in `file`, which is read again whenever it has changed.

    `check` raises an error for an image, by its row, that is gone or is another one by now; `by` says who decides.
    """

    def __init__(self, suspects: Suspects, file: Path, check: Callable[[int], object], by: str = "") -> None:
        self.suspects, self.file, self.check, self.by = suspects, file, check, by
        self.views = tuple(view for view in VIEWS if view != "labels" or suspects.doubts is not None)
        self._lock, self._stamp, self._state = threading.Lock(), None, State((), {}, None, frozenset(), {})
        self._groups = _sections(
            (f"Group {each.number}: {len(each.rows):,} images, {each.apart:.3g} apart from all others", each.rows)
            for each in suspects.groups
        )
        self._duplicates = _sections((f"{len(rows):,} copies of one image", rows) for rows in suspects.duplicates)

    def state(self) -> State:
        """Returns what was decided, by anybody. Raises: NoDecisions for a file that holds something else."""
        with self._lock:
            stamp = _stamp(self.file)
            if stamp != self._stamp:
                self._state, self._stamp = self._read(), stamp
            return self._state

    def rows(self, view: str) -> Sequence[int]:
        """Returns the rows of a view in its order."""
        if view == "suspects":
            return range(len(self.suspects))
        if view == "draw":
            draw = self.state().draw
            return (
                [self.suspects.rows_of[image][0] for image in draw.images if image in self.suspects.rows_of]
                if draw
                else []
            )
        if view == "decided":
            return [*reversed(self.state().of)]
        if view == "labels":
            return [*(self.suspects.doubts or ())]
        return [row for section in self.sections(view) for row in section.rows]

    def count(self, view: str) -> dict[str, int]:
        """Returns the number of images in a view, and of those in it that nobody has decided about."""
        rows, of = self.rows(view), self.state().of
        left = len(rows) - len(of) if view == "suspects" else sum(row not in of for row in rows)
        return {"images": len(rows), "left": left}

    def beside(self, view: str, row: int) -> tuple[int, str] | None:
        """Returns the row of the image to compare an image with, and what that is to it; None if there is none.

        Among the duplicates this is the image that it is a copy of, or else its first copy, and elsewhere the nearest image.
        """
        about, row_at = self.suspects.images[row], self.suspects.row_at
        if view != "duplicates":
            return None if about.nearest not in row_at else (row_at[about.nearest], "nearest")
        if about.copy_of in row_at:
            return row_at[about.copy_of], "it is a copy of"
        copies = next((rows for rows in self.suspects.duplicates if row in rows), ())
        return next(((each, "its copy") for each in copies if each != row), None)

    def sections(self, view: str) -> Sequence[Section]:
        """Returns the sections of a view, which most have none of."""
        return {"groups": self._groups, "duplicates": self._duplicates}.get(view, ())

    def decide(self, rows: Sequence[int], decision: str, label: str = "") -> dict[int, str]:
        """Writes a decision about some images, and returns by row why there is none about the others.

        An image that is gone, or is another one by now, gets none. Raises: NotDecided for a class that there is not.
        """
        if decision not in (*KINDS, UNDO):
            raise NotDecided(f"{decision!r} is no decision")
        if (decision == "relabel") != bool(label) or (label and label not in self.suspects.labels):
            raise NotDecided(f"{label!r} is no class of the run's images")
        refused, lines, time = {}, [], _now()
        for row in rows:
            about = self.suspects.images[row]
            try:
                if decision != UNDO:
                    self.check(row)
                lines.append(Decision(decision, about.image or "", about.path, label, time, self.by))
            except (UserError, OSError) as error:
                refused[row] = str(error)
        if lines:
            append(self.file, lines)
        return refused

    def draw(self, n: int) -> Draw:
        """Draws at most n of the contents that nobody has decided about at random, and writes which.

        Raises: NotDecided if there is none.
        """
        decided = {self.suspects.images[row].image for row in self.state().of}
        left = [image for image in self.suspects.rows_of if image not in decided]
        if not left:
            raise NotDecided("every image has been reviewed: there is none to draw")
        drawn = random.SystemRandom().sample(left, min(n, len(left)))
        time, among = _now(), str(len(left))
        paths = (self.suspects.images[self.suspects.rows_of[image][0]].path for image in drawn)
        append(
            self.file,
            [Decision(DRAWN, image, path, "", time, self.by, among) for image, path in zip(drawn, paths, strict=True)],
        )
        return Draw(tuple(drawn), len(left))

    def progress(self) -> dict[str, object]:
        """Returns counts of what was decided, and in words what follows for the other images."""
        state = self.state()
        suspicious = [each for image, each in state.standing.items() if image not in state.in_draws]
        judged = sum(each in JUDGED for each in suspicious)
        told = {"suspects": suspects_told(judged, suspicious.count("reject")), "draw": ""}
        if state.draw is not None:
            found = [state.standing[image] for image in state.draw.images if image in state.standing]
            told["draw"] = rate_told(state.draw, sum(each in JUDGED for each in found), found.count("reject"))
        return {
            "images": len(self.suspects),
            "decided": len(state.of),
            "of": Counter(each.decision for each in state.of.values()),
            "views": {view: self.count(view) for view in self.views},
            "told": told,
            "cut": list(state.cut),
        }

    def _read(self) -> State:
        try:
            decisions = read_decisions(self.file)
        except FileNotFoundError:
            return State((), {}, None, frozenset(), {})
        counts, found = counting(decisions.lines), {}
        for image, (place, line) in counts.by_image.items():
            found |= {row: (place, line) for row in self.suspects.rows_of.get(image, ())}
        for path, (place, line) in counts.by_path.items():
            row = self.suspects.row_at.get(path)
            if row is not None and found.get(row, (-1,))[0] < place:
                found[row] = (place, line)
        of = {row: line for row, (_, line) in sorted(found.items(), key=lambda item: item[1][0])}
        of_draws = draws(decisions.lines)
        drawn = frozenset(image for each in of_draws for image in each.images)
        standing = {
            name: line.decision for each in (counts.by_path, counts.by_image) for name, (_, line) in each.items()
        }
        return State(decisions.cut, of, of_draws[-1] if of_draws else None, drawn, standing)


def _sections(of: Sequence[tuple[str, tuple[int, ...]]]) -> list[Section]:
    found, first = [], 0
    for title, rows in of:
        found.append(Section(title, first, rows))
        first += len(rows)
    return found


def _stamp(file: Path) -> tuple[int, ...] | None:
    """Returns what changes with a file, None without it."""
    try:
        state = os.stat(file)
    except FileNotFoundError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
