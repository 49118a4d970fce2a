"""Runs side by side as a page: AUROC by detector and OOD set, and paired differences to the first as dots with intervals."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from clip_ood.evaluation import MEAN
from clip_ood.metrics.paired import Difference, Line
from reports.charts import colour_of
from reports.page import REPORT, percent, write_page
from reports.results import Results


@dataclass(frozen=True)
class Side:
    """A run of a comparison: what it is called there, its folder, the content of its results.json."""

    title: str
    folder: Path
    results: Results


@dataclass(frozen=True)
class Dot:
    """A difference to the first run in points of AUROC, written out, and its place in the chart: per cent of the width from
    the left."""

    text: str
    interval: str
    verdict: str
    colour: int
    low: float
    at: float
    high: float


@dataclass(frozen=True)
class Tally:
    """On how many detectors' means a run's interval lies above the first run's, below it, or around 0."""

    title: str
    better: int
    worse: int
    open: int


def write_compare_page(path: Path, sides: Sequence[Side], lines: Sequence[Line], over: str) -> Path:
    """Writes the page; `over` says what the intervals are over. Links to the runs' own pages are relative to it."""
    reach = _reach(lines)
    tables = defaultdict(list)
    for line in sorted(lines, key=lambda line: line.ood != MEAN):
        dots = [_dot(difference, colour_of(k), reach) for k, difference in enumerate(line.differences, start=1)]
        tables[line.ood].append((line.detector, [percent(value, 2) for value in line.aurocs], dots))
    write_page(
        path,
        "compare.html.j2",
        sides=[(side, colour_of(k), _link(path, side.folder)) for k, side in enumerate(sides)],
        tables=dict(tables),
        tallies=[_tally(side, k, lines) for k, side in enumerate(sides[1:])],
        over=over,
        reach=f"{reach:g}",
    )
    return path


def _tally(side: Side, number: int, lines: Sequence[Line]) -> Tally:
    means = [line.differences[number] for line in lines if line.ood == MEAN]
    better, worse = sum(each.low > 0 for each in means), sum(each.high < 0 for each in means)
    return Tally(side.title, better, worse, len(means) - better - worse)


def _reach(lines: Sequence[Line]) -> float:
    """Points of AUROC from the middle of the chart to its ends: a round number that holds every finite interval."""
    ends = [abs(100 * end) for line in lines for each in line.differences for end in (each.low, each.high)]
    furthest = max([end for end in ends if math.isfinite(end)], default=0)
    return next((step for step in (1, 2, 5, 10, 20, 50) if furthest <= step), 100)


def _dot(difference: Difference, colour: int, reach: float) -> Dot:
    low, at, high = (
        50 + 50 * min(max(100 * end / reach, -1), 1) for end in (difference.low, difference.value, difference.high)
    )
    verdict = "better" if difference.low > 0 else "worse" if difference.high < 0 else ""
    interval = f"{_signed(difference.low)} … {_signed(difference.high)}"
    return Dot(_signed(difference.value), interval, verdict, colour, round(low, 2), round(at, 2), round(high, 2))


def _signed(value: float) -> str:
    return f"{100 * value:+.2f}".replace("-", "−").replace("inf", "∞")


def _link(page: Path, folder: Path) -> str | None:
    """Where a run's own page lies, seen from this one; None where it has none."""
    report = folder / REPORT
    if not report.is_file():
        return None
    return quote(Path(os.path.relpath(report.resolve(), page.resolve().parent)).as_posix())
