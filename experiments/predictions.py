"""Writes predictions to a file or standard output, lists the images that could not be judged, and sets flagged ones aside."""

from __future__ import annotations

import csv
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import TextIO

from clip_ood.callbacks.prediction_writer import Line
from clip_ood.config.new_files import beside
from clip_ood.detect.prediction_files import CSVFile, JSONLines, Parquet, PredictionFile
from clip_ood.experiments.heat_maps import HeatMaps
from clip_ood.experiments.set_aside import Aside
from clip_ood.experiments.tolerated import Tolerated
from clip_ood.files.unreadable import SHOWN
from clip_ood.files.writing import written_text, written_whole
from clip_ood.files.written_names import TEXT, path_cell, text_cell
from clip_ood.terminal.shown import shown

END = "\r\n"  # ends a line of CSV
BYTES = "".join(map(chr, range(0xDC80, 0xDD00)))  # stand for bytes of names that are not UTF-8


@dataclass
class Counts:
    """How many images were judged, how many of them are copies of the run's own ID images, how many each detector flags as OOD, how many
    of those that are no such copies are flagged by which of all detectors (`patterns`), how many could not be judged, and how many could
    not be set aside (`left`); for the last two, also (path, reason) of the first ten. `alarmed`: whether a watched stream has changed.
    """

    judged: int = 0
    copies: int = 0
    ood: dict[str, int] = field(default_factory=dict)
    patterns: Counter[tuple[bool, ...]] = field(default_factory=Counter)
    failed: int = 0
    shown: list[tuple[str, str]] = field(default_factory=list)
    left: int = 0
    left_shown: list[tuple[str, str]] = field(default_factory=list)
    alarmed: bool = False


class Predictions:
    """Takes lines in the order of the inputs, and counts them.

    Images that the first of `detectors` flags are set aside in each of `asides`.
    """

    def __init__(
        self,
        file: PredictionFile,
        failures: csv.writer | None,
        tolerated: Tolerated,
        detectors: list[str],
        asides: Sequence[Aside | HeatMaps],
    ) -> None:
        self.file, self.failures, self.tolerated, self.asides = file, failures, tolerated, asides
        self.counts, self.first = Counts(ood=dict.fromkeys(detectors, 0)), detectors[0]
        self._flags: list[bool] = []  # of one image, whose lines follow one another

    def take(self, line: Line) -> None:
        """Takes a prediction, or the reason why there is none.

        Raises: OSError if it cannot be written, TooManyUnreadable for one reason too many.
        """
        counts = self.counts
        if "error" in line:
            counts.failed += 1
            if len(counts.shown) < SHOWN:
                counts.shown.append((line["path"], line["error"]))
            if self.failures is not None:
                self.failures.writerow([path_cell(line["path"]), text_cell(line["error"])])
            self.tolerated.take(line)
            return
        counts.judged += line["detector"] == self.first
        counts.copies += line["detector"] == self.first and line["copy_of"] is not None
        counts.ood[line["detector"]] += bool(line["is_ood"])  # None where nothing is decided
        self._flags.append(bool(line["is_ood"]))
        if len(self._flags) == len(counts.ood):
            counts.patterns[tuple(self._flags)] += line["copy_of"] is None
            self._flags.clear()
        self.file.write(line)
        if line["is_ood"] and line["detector"] == self.first:
            try:
                for each in self.asides:
                    each.take(*line["source"])
            except OSError as error:  # the prediction is valid all the same
                counts.left += 1
                if len(counts.left_shown) < SHOWN:
                    counts.left_shown.append((line["path"], error.strerror or str(error)))


class Printed:
    """Takes lines of CSV for a stream.

    In a file, names are exact. A terminal is shown escapes for what would steer it, and so is a pipe, which may lead to a
    terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.flush = stream, stream.flush
        self.is_file, self.keep = _is_file(stream), "\t" if stream.isatty() else "\n\t\r" + BYTES

    def write(self, line: str) -> None:
        """Writes a whole line."""
        self.stream.write(line if self.is_file else shown(line.removesuffix(END), self.keep) + END)


def _is_file(stream: TextIO) -> bool:
    try:
        return S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # not a stream of the system
        return False


@contextmanager
def printed(
    format: str,
    tolerated: Tolerated,
    detectors: list[str],
    asides: Sequence[Aside | HeatMaps],
    further: Sequence[str] = (),
) -> Iterator[Predictions]:
    """Writes predictions to standard output, as they come."""
    with suppress(AttributeError):  # not a stream of the system
        sys.stdout.reconfigure(**TEXT, line_buffering=True)  # its reader need not wait
    file = JSONLines(sys.stdout, further) if format == "jsonl" else CSVFile(Printed(sys.stdout), further)
    yield Predictions(file, None, tolerated, detectors, asides)
    file.close()


@contextmanager
def written(
    out: Path,
    tolerated: Tolerated,
    detectors: list[str],
    asides: Sequence[Aside | HeatMaps],
    further: Sequence[str] = (),
    exact: bool = False,
) -> Iterator[Predictions]:
    """Writes predictions to `out` (.csv, .jsonl or .parquet, the last with a column for `exact` paths), whole or not at all.

    Images that could not be judged are listed in `out`.unreadable.csv.
    """
    unreadable = beside(out)
    kind = {".csv": CSVFile, ".jsonl": JSONLines, ".parquet": Parquet}[out.suffix.lower()]
    opened = written_whole(out) if kind is Parquet else written_text(out)
    with opened as whole, written_text(unreadable) as others:
        failures = csv.writer(others)
        failures.writerow(("path", "reason"))
        file = kind(whole, further, exact) if kind is Parquet else kind(whole, further)
        predictions = Predictions(file, failures, tolerated, detectors, asides)
        yield predictions
        file.close()
    if not predictions.counts.failed:
        unreadable.unlink()
