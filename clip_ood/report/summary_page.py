"""Writes a summary of runs as a page that sorts by any column and shows any detector, without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clip_ood.report.compare_page import link_to
from clip_ood.report.page import write_page
from clip_ood.report.summary import Benchmark, Figure, Line

FIRST = "each run's first"  # the choice of detectors that a page begins with
ASCENDING = {"fpr95"}  # metrics of which a small value is good
NAMES = {"auroc": "AUROC", "fpr95": "FPR95", "accuracy": "accuracy", "auoscr": "AUOSCR"}


@dataclass(frozen=True)
class Shown:
    """A line of a table: the run's name and report, the place of its detector among all, its numbers by column, and its rank by each."""

    line: Line
    link: str | None
    detector: int
    figures: list[Figure | None]
    ranks: list[int]


@dataclass(frozen=True)
class Section:
    """A benchmark, its columns (title and metric in words), and its lines."""

    benchmark: Benchmark
    columns: list[tuple[str, str]]
    lines: list[Shown]


def write_summary_page(path: Path, benchmarks: Sequence[Benchmark], over: Sequence[str]) -> Path:
    """Writes the page; `over` says what intervals are computed from. Links to the runs' own pages are relative to this page."""
    detectors = list(dict.fromkeys(line.detector for each in benchmarks for line in each.lines))
    sections = [_section(path, each, detectors) for each in benchmarks]
    runs = len({line.folder for each in benchmarks for line in each.lines})
    write_page(path, "summary.html.j2", sections=sections, detectors=detectors, first=FIRST, over=over, runs=runs)
    return path


def _section(page: Path, benchmark: Benchmark, detectors: list[str]) -> Section:
    columns = benchmark.columns
    ranks = [_ranks(benchmark.lines, column) for column in columns]
    lines = [
        Shown(
            line,
            link_to(page, line.folder),
            detectors.index(line.detector),
            [line.figures.get(column) for column in columns],
            [of_column[place] for of_column in ranks],
        )
        for place, line in enumerate(benchmark.lines)
    ]
    return Section(benchmark, [(title, NAMES.get(metric, metric)) for title, metric in columns], lines)


def _ranks(lines: list[Line], column: tuple[str, str]) -> list[int]:
    """Returns the place of each line in the order by a column, the best first, and lines without a number last."""
    sign = 1 if column[1] in ASCENDING else -1
    values = [line.figures.get(column) for line in lines]
    order = sorted(
        range(len(lines)), key=lambda place: (values[place] is None, values[place] and sign * values[place].value)
    )
    found = [0] * len(lines)
    for rank, place in enumerate(order):
        found[place] = rank
    return found
