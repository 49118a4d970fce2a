"""Writes what a run says of test-time methods: stream.csv, and `stream` in results.json, apart from all other scores."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from clip_ood.files.writing import written_text
from clip_ood.files.written_names import cells
from clip_ood.stream.evaluation import METRICS, Spread, StreamResults

STATISTICS = ("mean", "std", "min", "max")
COLUMNS = (
    *("method", "ood", *(f"{metric}_{name}" for metric in METRICS for name in STATISTICS)),
    *("orders", "seeds", "batch_size", "ood_share", "n_id", "n_ood"),
)


def stream_content(stream: StreamResults) -> dict[str, Any]:
    """Returns what results.json says under `stream`, as `clip_ood.runs.stream_records` declares it; values are fractions."""
    return {
        "seeds": list(stream.plan.seeds),
        "batch_size": stream.plan.batch_size,
        "ood_share": stream.plan.ood_share,
        "methods": stream.methods,
        "rows": [
            {"method": row.method, "ood": row.ood, **row.values, "n_id": row.n_id, "n_ood": row.n_ood}
            for row in stream.rows
        ],
    }


def write_stream(path: Path, content: dict[str, Any] | None) -> None:
    """Writes the rows as CSV: mean, standard deviation, minimum and maximum over orders, in percent with 2 decimals.

    The seeds of the orders are those from the first to the last of `seeds`. A single order has no standard deviation, and
    streams of all images have an empty `ood_share`. A run without a stream has no file. That of several seeds has a further column, the
    number of seeds (`run_seeds`), and `orders` counts those of all.
    """
    if content is None:
        path.unlink(missing_ok=True)  # of earlier results
        return
    seeds = content["seeds"]
    about = {"orders": len(seeds), "seeds": f"{min(seeds)}-{max(seeds)}", "batch_size": content["batch_size"]}
    about["ood_share"] = "" if content["ood_share"] is None else f"{100 * content['ood_share']:.2f}"
    columns = COLUMNS
    if content.get("run_seeds"):
        columns, about["run_seeds"] = (*COLUMNS, "run_seeds"), len(set(content["run_seeds"]))
    with written_text(path) as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        for row in content["rows"]:
            writer.writerow(cells(row | about | _percents(row), ("method", "ood")))


def _percents(row: dict[str, Any]) -> dict[str, str]:
    found = {}
    for metric in METRICS:
        spread = Spread.of(row[metric])
        values = zip(STATISTICS, (spread.mean, spread.std, spread.low, spread.high), strict=True)
        found |= {f"{metric}_{name}": "" if value is None else f"{100 * value:.2f}" for name, value in values}
    return found
