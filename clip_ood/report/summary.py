"""Gathers finished runs as a summary over benchmarks and encoders: a line for each run, and for each detector that stands for it."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from clip_ood.errors import ConfigError, nearest
from clip_ood.files.writing import written_text
from clip_ood.files.written_names import path_cell, text_cell
from clip_ood.metrics.ood import MEAN
from clip_ood.runs.results_table import is_useless
from clip_ood.runs.run_folder import FINISHED, read_results

Columns = tuple[tuple[str, str], ...]  # each a title and a metric


@dataclass(frozen=True)
class Figure:
    """A number of a line, a fraction, with its 95 % interval if it has one, and whether that is too wide to tell much."""

    value: float
    low: float | None = None
    high: float | None = None
    useless: bool = False


@dataclass(frozen=True)
class Line:
    """A detector of a run: the run's folder, what it was made with, whether the detector stands for the run if none is named, and its numbers
    by column (title and metric)."""

    folder: Path
    encoder: str
    method: str
    detector: str
    first: bool
    seeds: int
    figures: dict[tuple[str, str], Figure]


@dataclass(frozen=True)
class Benchmark:
    """The lines of the runs that were tested on sets of the same names and sizes: the number of ID images, those of each OOD set by name,
    its group, and the columns that lines have."""

    n_id: float
    sets: dict[str, float]
    groups: dict[str, str]
    lines: list[Line]

    @property
    def columns(self) -> list[tuple[str, str]]:
        """The titles and metrics of all columns, means before single sets."""
        return list(dict.fromkeys(column for line in self.lines for column in line.figures))


def summarize(places: Sequence[str]) -> list[Benchmark]:
    """Returns the runs in folders `places` by benchmark, in the order of the first run of each.

    A place is `FOLDER`, whose first detector stands for it, or `FOLDER:detector`; a run that is given several times has each line once, and
    every detector that was named stands for it. Raises: ConfigError for a folder without results, for one
    that was tested against no OOD set, and for a detector that it does not have.
    """
    found: dict[tuple[Any, ...], Benchmark] = {}
    chosen: dict[Path, dict[str | None, None]] = defaultdict(dict)
    opened: dict[Path, tuple[Path, dict[str, Any]]] = {}
    for folder, detector, results in map(_opened, dict.fromkeys(places)):
        opened.setdefault(folder.resolve(), (folder, results))
        chosen[folder.resolve()][detector] = None
    for place, (folder, results) in opened.items():
        rows = [row for row in results["rows"] if row["setting"] == "standard"]
        sets = {row["ood"]: row["n_ood"] for row in rows if row["ood"] != MEAN}
        key = (rows[0]["n_id"], tuple(sorted(sets.items())))
        groups = {row["ood"]: row["group"] for row in rows if row["ood"] != MEAN}
        benchmark = found.setdefault(key, Benchmark(rows[0]["n_id"], sets, groups, []))
        benchmark.lines.extend(_lines(folder, list(chosen[place]), results, rows))
    return list(found.values())


def write_summary(path: Path, benchmarks: Sequence[Benchmark]) -> None:
    """Writes a line for each run, detector, OOD set (or mean over several) and metric, in percent with 2 decimals."""
    with written_text(path) as file:
        writer = csv.writer(file)
        writer.writerow(
            ["run", "encoder", "method", "detector", "first", "seeds", "n_id", "on", "metric", "value", "low", "high"]
        )
        for benchmark in benchmarks:
            for line in benchmark.lines:
                about = [path_cell(str(line.folder)), *map(text_cell, (line.encoder, line.method, line.detector))]
                for (title, metric), each in line.figures.items():
                    numbers = [
                        "" if value is None else f"{100 * value:.2f}" for value in (each.value, each.low, each.high)
                    ]
                    writer.writerow(
                        [
                            *about,
                            str(line.first).lower(),
                            line.seeds,
                            f"{benchmark.n_id:.10g}",
                            text_cell(title),
                            metric,
                            *numbers,
                        ]
                    )


def _opened(place: str) -> tuple[Path, str | None, dict[str, Any]]:
    folder, detector = Path(place), None
    if not folder.exists() and ":" in place:
        named, _, detector = place.rpartition(":")
        folder = Path(named)
    if not (folder / FINISHED).is_file():
        raise ConfigError(f"--summary: {folder} is no finished run: there is no {folder / FINISHED}")
    results = read_results(folder)
    known = dict.fromkeys(row["detector"] for row in results["rows"])
    if not known:
        raise ConfigError(
            f"--summary: {folder} was tested against no OOD set (data.ood), so there is nothing to summarize"
        )
    if detector is not None and detector not in known:
        raise ConfigError(f"--summary: {folder} has no detector {detector!r}.{nearest(detector, known)}")
    return folder, detector, results


def _lines(folder: Path, named: list[str | None], results: dict[str, Any], rows: list[dict[str, Any]]) -> list[Line]:
    by_detector = defaultdict(dict)
    for row in rows:
        by_detector[row["detector"]][row["ood"]] = row
    chosen = {name or rows[0]["detector"] for name in named}
    return [
        Line(
            folder,
            results.get("encoder") or "",
            results["method"],
            name,
            name in chosen,
            len(results["seeds"]),
            _figures(name, of_set, results),
        )
        for name, of_set in by_detector.items()
    ]


def _figures(
    detector: str, of_set: dict[str, dict[str, Any]], results: dict[str, Any]
) -> dict[tuple[str, str], Figure]:
    """Returns the numbers of a detector, from its rows by OOD set."""
    singles = {name: row for name, row in of_set.items() if name != MEAN}
    groups = dict.fromkeys(row["group"] for row in singles.values())
    found = {(MEAN, metric): _figure(of_set[MEAN], metric) for metric in ("auroc", "fpr95") if MEAN in of_set}
    if len(groups) > 1:
        for group in groups:
            of_group = [row["auroc"] for row in singles.values() if row["group"] == group]
            found[f"{group} (mean)", "auroc"] = Figure(fmean(of_group))
    if results["accuracy"] is not None:
        found["ID", "accuracy"] = Figure(results["accuracy"])
    for row in (results.get("joint") or {"rows": []})["rows"]:
        if (row["detector"], row["ood"]) == (detector, MEAN) and row["auoscr"] is not None:
            found[MEAN, "auoscr"] = _figure(row, "auoscr")
    return found | {(name, "auroc"): _figure(row, "auroc") for name, row in singles.items()}


def _figure(row: dict[str, Any], metric: str) -> Figure:
    low, high = row["intervals"].get(metric, (None, None))
    return Figure(row[metric], low, high, is_useless(row, metric))
