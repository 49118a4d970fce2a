"""Turns the rows of a results.json into the tables of a page, with every number written out."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from clip_ood.metrics.curves import METRICS
from clip_ood.metrics.ood import MEAN
from clip_ood.report.page import percent
from clip_ood.runs.results_table import USELESS, is_useless

Results = dict[str, Any]


@dataclass(frozen=True)
class Value:
    """A metric in percent, its 95 % interval, whether that is useless (wider than 20 points), and ± its deviation over seeds.

    Texts are "" if there is no such value.
    """

    text: str
    interval: str
    spread: str
    useless: bool = False


@dataclass(frozen=True)
class Cell:
    """One detector on one OOD set."""

    auroc: Value
    fpr95: Value
    best: bool


@dataclass(frozen=True)
class Table:
    """AUROC and FPR95 in one setting: the OOD sets with their numbers of images, their mean first, and a line for each detector."""

    setting: str
    n_id: int
    sets: dict[str, int]
    lines: dict[str, list[Cell]]


def tables(results: Results) -> list[Table]:
    """Returns a table for each setting; the best AUROC of a set is marked."""
    by_setting = defaultdict(list)
    for row in results["rows"]:
        by_setting[row["setting"]].append(row)
    return [_table(setting, rows) for setting, rows in by_setting.items()]


def _table(setting: str, rows: list[dict[str, Any]]) -> Table:
    rows = sorted(rows, key=lambda row: row["ood"] != MEAN)
    sets = {row["ood"]: row["n_ood"] for row in rows}
    best = {name: max(row["auroc"] for row in rows if row["ood"] == name) for name in sets}
    lines = defaultdict(list)
    for row in rows:
        cell = Cell(value(row, "auroc"), value(row, "fpr95"), row["auroc"] == best[row["ood"]])
        lines[row["detector"]].append(cell)
    return Table(setting, rows[0]["n_id"], sets, dict(lines))


def all_metrics(results: Results) -> list[tuple[dict[str, Any], list[Value]]]:
    """Returns every row with the values of all its metrics, in the order of `METRICS`."""
    return [(row, [value(row, name) for name in METRICS]) for row in results["rows"]]


def mean_row(results: Results, detector: str) -> dict[str, Any] | None:
    """Returns the mean of a detector over the OOD sets, without covariate-shifted ID; None without OOD sets."""
    wanted = (detector, MEAN, "standard")
    return next((row for row in results["rows"] if (row["detector"], row["ood"], row["setting"]) == wanted), None)


def value(row: dict[str, Any], metric: str) -> Value:
    """Returns a metric of a row."""
    low, high = row["intervals"].get(metric, (None, None))
    std = row.get("std", {}).get(metric)
    return Value(
        percent(row[metric]),
        "" if low is None else f"{percent(low)} – {percent(high)}",
        "" if std is None else f"± {percent(std)}",
        is_useless(row, metric),
    )


def with_interval(value: float | None, low: float | None = None, high: float | None = None) -> Value:
    """Returns a fraction in percent, with its interval if it has one."""
    if low is None or high is None:
        return Value(percent(value), "", "")
    return Value(percent(value), f"{percent(low)} – {percent(high)}", "", high - low > USELESS)
