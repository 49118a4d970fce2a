"""Holds the detector that judges, and puts a new one in its place when its folder has changed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from clip_ood.detect.manifest import MANIFEST, find_folder, read_manifest
from clip_ood.errors import UserError
from clip_ood.serve.judge import Judge

Stamp = tuple[tuple[str, int, int, int], ...]


class Detectors:
    """The judge of a run, loaded in a thread that then looks at the run's folder every `seconds`.

    A folder that was replaced is loaded beside the judge that there is, and takes over with the next request. One that is damaged,
    incomplete or does not go with what the server was asked is refused with a line (`say`), and the judge stays; it is tried again when
    its files have changed. A folder whose files changed since the last look is not tried yet, since somebody may be copying it.

    `make` loads a judge, and raises what it likes to; `failed` is told of an error of the first one, which nothing replaces.
    """

    def __init__(
        self,
        place: Path,
        make: Callable[[], Judge],
        taken: Callable[[Judge], None],
        failed: Callable[[BaseException], None],
        say: Callable[[str], None],
        seconds: float = 2.0,
    ) -> None:
        self.place, self.make, self.taken, self.failed, self.say, self.seconds = (
            place,
            make,
            taken,
            failed,
            say,
            seconds,
        )
        self.current: Judge | None = None
        self._tried = self._last = stamp(place)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="detectors", daemon=True)

    def start(self) -> None:
        """Begins to load, and then to look."""
        self._thread.start()

    def end(self) -> None:
        """Ends the looking; a detector that is being loaded is not waited for."""
        self._ended.set()

    def _run(self) -> None:
        try:
            self._take(self.make())
        except BaseException as error:
            self.failed(error)
            return
        while not self._ended.wait(self.seconds):
            self.look()

    def look(self) -> None:
        """Loads the folder anew if its files have changed, and then stayed as they are from one look to the next."""
        now, before = stamp(self.place), self._last
        self._last = now
        if now != before or now == self._tried:
            return
        self._tried = now
        try:
            if read_manifest(find_folder(self.place) / MANIFEST)["digest"] == self.current.digest:
                return
            self._take(self.make())
        except Exception as error:  # anybody may have written the folder, so anything may be raised
            told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self.say(f"The new detector in {self.place} is refused, and the one before goes on: {told}")
            return
        self.say(f"A new detector judges from now on: {self.current.digest[:12]}")

    def _take(self, judge: Judge) -> None:
        self.current = judge
        self.taken(judge)


def stamp(place: Path) -> Stamp:
    """Returns what changes with the files of a detector's folder: their names, numbers, sizes and times; () if there is none."""
    try:
        folder = find_folder(place)
        files = sorted((each for each in folder.rglob("*") if each.is_file()), key=str)
        states = [(str(each.relative_to(folder)), os.stat(each)) for each in files]
    except (UserError, OSError):
        return ()
    return tuple((name, state.st_ino, state.st_size, state.st_mtime_ns) for name, state in states)
