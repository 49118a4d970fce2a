"""Where verdicts go: a file or standard output, the images that could not be judged beside it, flagged ones set aside."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from callbacks.verdict_files import TEXT, CSVFile, JSONLines, Parquet, VerdictFile
from callbacks.verdict_writer import Line
from configs.detecting import beside
from experiments.set_aside import set_aside

SHOWN = 20  # failures of a kind, in the terminal


@dataclass
class Counts:
    """How many images were judged, how many of them are OOD, how many could not be judged, and how many could not be set aside
    (`left`): of both (path, reason) of the first."""

    judged: int = 0
    ood: int = 0
    failed: int = 0
    shown: list[tuple[str, str]] = field(default_factory=list)
    left: int = 0
    left_shown: list[tuple[str, str]] = field(default_factory=list)


class Verdicts:
    """Takes lines in the order of the inputs, and counts."""

    def __init__(self, file: VerdictFile, failures: csv.writer | None, move_ood: Path | None, link: bool) -> None:
        self.file, self.failures, self.move_ood, self.link = file, failures, move_ood, link
        self.counts = Counts()

    def take(self, line: Line) -> None:
        """A verdict, or why there is none. Raises: OSError where it cannot be written."""
        counts = self.counts
        if "error" in line:
            counts.failed += 1
            if len(counts.shown) < SHOWN:
                counts.shown.append((line["path"], line["error"]))
            if self.failures is not None:
                self.failures.writerow([line["path"], line["error"]])
            return
        counts.judged += 1
        counts.ood += line["is_ood"]
        self.file.write(line)
        if line["is_ood"] and self.move_ood is not None:
            try:
                set_aside(self.move_ood, *line["source"], self.link)
            except OSError as error:  # the verdict stands
                counts.left += 1
                if len(counts.left_shown) < SHOWN:
                    counts.left_shown.append((line["path"], error.strerror or str(error)))


@contextmanager
def printed(format: str, move_ood: Path | None, link: bool) -> Iterator[Verdicts]:
    """To standard output, as they come."""
    with suppress(AttributeError):  # not a stream of the system
        sys.stdout.reconfigure(**TEXT, line_buffering=True)  # whoever reads it need not wait
    file = JSONLines(sys.stdout) if format == "jsonl" else CSVFile(sys.stdout)
    yield Verdicts(file, None, move_ood, link)
    file.close()


@contextmanager
def written(out: Path, move_ood: Path | None, link: bool) -> Iterator[Verdicts]:
    """To `out` (.csv, .jsonl or .parquet), whole or not at all; what could not be judged to `out`.unreadable.csv."""
    unreadable = beside(out)
    temporary, listed = (path.with_name(f"{path.name}.tmp") for path in (out, unreadable))
    with temporary.open("w", **TEXT) as text, listed.open("w", **TEXT) as others:
        failures = csv.writer(others)
        failures.writerow(("path", "reason"))
        kinds = {
            ".csv": lambda: CSVFile(text),
            ".jsonl": lambda: JSONLines(text),
            ".parquet": lambda: Parquet(temporary),
        }
        file = kinds[out.suffix.lower()]()
        verdicts = Verdicts(file, failures, move_ood, link)
        yield verdicts
        file.close()
    temporary.replace(out)
    if verdicts.counts.failed:
        listed.replace(unreadable)
    else:
        listed.unlink()
        unreadable.unlink(missing_ok=True)
