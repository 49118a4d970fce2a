"""Compares what a study obtained with the numbers that it expects: published ones, or its own of before."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from clip_ood.config.study_schema import Expected
from clip_ood.experiments.study.plan import Plan, Point
from clip_ood.experiments.study.values import Results
from clip_ood.files.writing import written_text
from clip_ood.files.written_names import text_cell
from clip_ood.metrics.ood import MEAN


@dataclass(frozen=True)
class Compared:
    """An expected number beside the obtained one, in percent.

    Attributes: labels, those of the axes; obtained is None if it is not here; low and high are the ends of its 95 % interval (None: it
    has none); within is how many points may lie between both (None: any number).
    """

    labels: dict[str, str]
    line: str
    ood: str
    metric: str
    expected: float
    obtained: float | None
    low: float | None
    high: float | None
    n_id: float | None
    n_ood: float | None
    within: float | None
    source: str
    convention: str

    @property
    def place(self) -> str:
        """The labels of the axes in one text."""
        return " · ".join(self.labels.values())

    @property
    def difference(self) -> float | None:
        """Obtained less expected, in points."""
        return None if self.obtained is None else self.obtained - self.expected

    @property
    def is_missed(self) -> bool:
        """Says whether the obtained number is farther from the expected one than it may be."""
        return self.within is not None and self.obtained is not None and abs(self.difference) > self.within


def compared(plan: Plan, results: Results) -> list[Compared]:
    """Returns every expected number of a study beside the one that its runs obtained. A mean over sets of which some are not here is none."""
    return [each for expected in plan.study.expected for each in _of(expected, plan, results)]


def write_compared(path: Path, found: Iterable[Compared]) -> None:
    """Writes a line for each expected number, in percent with 2 decimals, with the labels of the axes in one cell."""
    names = [each.name for each in fields(Compared) if each.name != "labels"]
    with written_text(path) as file:
        writer = csv.writer(file)
        writer.writerow(["at", *names, "difference"])
        for each in found:
            values = [getattr(each, name) for name in (*names, "difference")]
            writer.writerow([text_cell(each.place), *map(_cell, values)])


def point_of(expected: Expected, plan: Plan) -> Point | None:
    """Returns the point of a study, the first of its line at these labels, that numbers are expected of; None if there is none."""
    return next(
        (each for each in plan.points if each.line == expected.line and each.labels.items() >= expected.at.items()),
        None,
    )


def _of(expected: Expected, plan: Plan, results: Results) -> Iterator[Compared]:
    point = point_of(expected, plan)
    found = results.get(point.run) if point else None
    rows = (
        [row for row in found["rows"] if row["detector"] == point.detector and row["setting"] == "standard"]
        if found
        else []
    )
    missing = plan.left_out.get(point.run, {}) if point else {}
    for ood, value in expected.values.items():
        mine = [row for row in rows if row["ood"] == ood]
        if ood == MEAN and missing:
            mine = []
        elif not mine and ood not in missing.values():
            mine = [row for row in rows if row["group"] == ood and row["ood"] != MEAN]
        obtained = fmean(row[expected.metric] for row in mine) if mine else None
        low, high = mine[0]["intervals"].get(expected.metric, (None, None)) if len(mine) == 1 else (None, None)
        yield Compared(
            labels=point.labels if point else dict(expected.at),
            line=expected.line,
            ood=ood,
            metric=expected.metric,
            expected=value,
            obtained=_percent(obtained),
            low=_percent(low),
            high=_percent(high),
            n_id=mine[0]["n_id"] if mine else None,
            n_ood=sum(row["n_ood"] for row in mine) if mine else None,
            within=expected.within,
            source=expected.source,
            convention=expected.convention,
        )


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else text_cell(str(value))
