"""Turns `stream` of a results.json into the table of a page: a line for each test-time method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clip_ood.metrics.ood import MEAN
from clip_ood.runs.stream_table import USED, figure, streams_told
from clip_ood.stream.evaluation import METRICS, Spread


@dataclass(frozen=True)
class StreamCell:
    """A metric of a method on an OOD set: mean ± standard deviation over orders, and the lowest and highest value, in percent."""

    text: str
    ends: str


@dataclass(frozen=True)
class StreamTable:
    """AUROC and FPR95 of each method (`lines`) on each OOD set, their mean first (`sets`: numbers of images); `used` and `how` explain them."""

    used: str
    how: str
    sets: dict[str, int]
    lines: dict[str, list[StreamCell]]


def stream_table(stream: dict[str, Any] | None) -> StreamTable | None:
    """Returns the table; None for a run without a stream."""
    if stream is None:
        return None
    rows = {(row["method"], row["ood"]): row for row in stream["rows"]}
    sets = {row["ood"]: row["n_ood"] for row in stream["rows"]}
    ordered = {name: sets[name] for name in sorted(sets, key=lambda name: name != MEAN)}
    lines = {
        method: [_cell(rows[method, name][metric]) for name in ordered for metric in METRICS]
        for method in dict.fromkeys(method for method, _ in rows)
    }
    return StreamTable(USED, streams_told(stream), ordered, lines)


def _cell(values: list[float]) -> StreamCell:
    spread = Spread.of(values)
    ends = f"{100 * spread.low:.1f} – {100 * spread.high:.1f}" if len(values) > 1 else ""
    return StreamCell(figure(values), ends)
