"""Counts images given to detect.py that cannot be read, some of which are tolerated."""

from __future__ import annotations

import csv
from pathlib import Path

from clip_ood.callbacks.prediction_writer import Line
from clip_ood.data.inputs import is_stream, sources
from clip_ood.files.unreadable import LEAST, Tolerance, TooManyUnreadable
from clip_ood.files.writing import written_text
from clip_ood.files.written_names import path_cell, text_cell


class Tolerated:
    """Counts the images that could not be judged, and raises TooManyUnreadable as soon as there are more than `tolerance` allows.

    All of them so far are then listed in the file `listed`, if there is one. The images of the inputs are counted only when their
    number matters; it is unknown for standard input, which is judged to its end. With several processes, each counts what it
    judges, and the first counts all when it joins their predictions.
    """

    def __init__(self, paths: list[str], tolerance: Tolerance, listed: Path | None) -> None:
        self.paths, self.tolerance, self.listed = paths, tolerance, listed
        self.found: list[tuple[str, str]] = []
        self._total: int | None = None

    def take(self, line: Line) -> None:
        """Takes a line of the judging; files that are no images by their names do not count."""
        if "error" not in line or not line["is_image"] or any(map(is_stream, self.paths)):
            return
        self.found.append((line["path"], line["error"]))
        if len(self.found) <= LEAST:
            return
        if self._total is None:
            self._total = sum(source.reason is None for source in sources(self.paths))
        try:
            self.tolerance.check("The images", self._total, self.found, self.listed and str(self.listed))
        except TooManyUnreadable:
            if self.listed is not None:
                write_failures(self.listed, self.found)
            raise


def write_failures(path: Path, found: list[tuple[str, str]]) -> None:
    """Writes path and reason of what could not be judged."""
    with written_text(path) as file:
        csv.writer(file).writerows([("path", "reason"), *((path_cell(path), text_cell(why)) for path, why in found)])
