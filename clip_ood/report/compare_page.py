"""Writes a page of runs side by side: AUROC by detector and OOD set, and paired differences to the first run with intervals."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from clip_ood.metrics.ood import MEAN
from clip_ood.metrics.paired import Difference, Line
from clip_ood.report.charts import colour_of
from clip_ood.report.page import percent, write_page
from clip_ood.report.results import Results
from clip_ood.runs.run_folder import REPORT


@dataclass(frozen=True)
class Side:
    """A run of a comparison: its name there, its folder, and the content of its results.json."""

    title: str
    folder: Path
    results: Results


@dataclass(frozen=True)
class Dot:
    """A difference to the first run in points of AUROC, written out, and its place in the chart.

    The place is in per cent of the width from the left. `spread` is ± its standard deviation over seeds, "" for a single seed.
    """

    text: str
    interval: str
    spread: str
    prediction: str
    colour: int
    low: float
    at: float
    high: float


@dataclass(frozen=True)
class Chart:
    """The detectors on one OOD set, each with the AUROC of every run and the dots of the later ones; it reaches to ± reach."""

    reach: float
    rows: list[tuple[str, list[str], list[Dot]]]


@dataclass(frozen=True)
class Tally:
    """For how many detectors' means the corrected test finds a run better, worse, or neither; `only` is the difference if there is
    a single detector.
    """

    title: str
    better: int
    worse: int
    open: int
    only: Dot | None


def write_compare_page(
    path: Path, sides: Sequence[Side], lines: Sequence[Line], over: str, remarks: Sequence[str] = ()
) -> Path:
    """Writes the page; `over` says what the intervals are computed from, and `remarks` what else must be said.

    Links to the runs' own pages are relative to this page.
    """
    of_set = defaultdict(list)
    for line in lines:
        of_set[line.ood].append(line)
    charts = {ood: _chart(of_set[ood]) for ood in sorted(of_set, key=lambda ood: ood != MEAN)}
    write_page(
        path,
        "compare.html.j2",
        sides=[(side, colour_of(k), link_to(path, side.folder)) for k, side in enumerate(sides)],
        charts=charts,
        tallies=[_tally(side.title, k, of_set[MEAN], charts[MEAN]) for k, side in enumerate(sides[1:])],
        over=over,
        remarks=remarks,
        tested=sum(len(line.differences) for line in lines),
        seeds=any(each.std is not None for line in lines for each in line.differences),
    )
    return path


def _chart(lines: list[Line]) -> Chart:
    """Returns the lines of one OOD set; the chart reaches to a round number of points that holds every finite interval."""
    ends = [abs(100 * end) for line in lines for each in line.differences for end in (each.low, each.high)]
    furthest = max([end for end in ends if math.isfinite(end)], default=0)
    reach = next((step for step in (1, 2, 5, 10, 20, 30, 40, 50) if furthest <= step), 100)
    rows = []
    for line in lines:
        dots = [_dot(difference, colour_of(k), reach) for k, difference in enumerate(line.differences, start=1)]
        rows.append((line.detector, [percent(value, 2) for value in line.aurocs], dots))
    return Chart(reach, rows)


def _tally(title: str, number: int, means: list[Line], chart: Chart) -> Tally:
    found = [line.differences[number] for line in means]
    better, worse = (sum(each.claimed and sign * each.value > 0 for each in found) for sign in (1, -1))
    only = chart.rows[0][2][number] if len(means) == 1 else None
    return Tally(title, better, worse, len(found) - better - worse, only)


def _dot(difference: Difference, colour: int, reach: float) -> Dot:
    low, at, high = (
        50 + 50 * min(max(100 * end / reach, -1), 1) for end in (difference.low, difference.value, difference.high)
    )
    prediction = ("better" if difference.value > 0 else "worse") if difference.claimed else ""
    interval = f"{_signed(difference.low)} … {_signed(difference.high)}"
    spread = "" if difference.std is None else f"± {percent(difference.std, 2)}"
    return Dot(
        _signed(difference.value), interval, spread, prediction, colour, round(low, 2), round(at, 2), round(high, 2)
    )


def _signed(value: float) -> str:
    return f"{100 * value:+.2f}".replace("-", "−").replace("inf", "∞")


def link_to(page: Path, folder: Path) -> str | None:
    """Returns where a run's own page lies, relative to this one, or None if it has none."""
    report = folder / REPORT
    if not report.is_file():
        return None
    try:
        return quote(os.fsencode(Path(os.path.relpath(report.resolve(), page.resolve().parent)).as_posix()))
    except ValueError:  # it is on another drive
        return report.resolve().as_uri()
