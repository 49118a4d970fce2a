"""results.json, results.csv and scores.parquet of a run: the contract with everything that reads runs."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from callbacks.ood_evaluation import Results
from clip_ood.evaluation import Row
from clip_ood.metrics.curves import METRICS
from datamodules.benchmark import Benchmark

COLUMNS = ("detector", "setting", "ood", "group", *METRICS, "n_id", "n_ood")


def write_results(folder: Path, results: Results, about: dict[str, Any], benchmark: Benchmark) -> None:
    """Writes all three; results.json last, since it marks a run as finished.

    `about`: run, method, encoder, seeds, bank, pseudo_labels, sweep (the heads of a probe sweep; also as sweep.csv), versions.
    """
    rows = [_json_row(row) for row in results.rows]
    write_table(folder / "results.csv", rows)
    write_scores(folder / "scores.parquet", results, benchmark)
    if about["sweep"]:
        write_sweep(folder / "sweep.csv", about["sweep"])
    content = {
        **about,
        "accuracy": results.accuracy,
        "knn_accuracy": results.knn_accuracy,
        "omitted": [asdict(omitted) for omitted in results.omitted],
        "notes": [{"detector": name, "note": note} for name, notes in results.notes.items() for note in notes],
        "rows": rows,
    }
    write_json(folder / "results.json", content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    temporary.replace(path)


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows of results.json as CSV, metrics in percent with 2 decimals."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow([f"{100 * row[name]:.2f}" if name in METRICS else row[name] for name in COLUMNS])


def write_sweep(path: Path, heads: list[dict[str, Any]]) -> None:
    """A line a head of a probe sweep: its settings, val_accuracy (a fraction), val_nll (empty: not finite), chosen."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, heads[0])
        writer.writeheader()
        writer.writerows(heads)


def write_scores(path: Path, results: Results, benchmark: Benchmark) -> None:
    """A row an image: set, role, path, label and prediction (class names), then a column a detector."""
    names = benchmark.class_names

    def named(classes: list[int]) -> list[str | None]:
        return [None if label < 0 else names[label] if names else str(label) for label in classes]

    tables = []
    for name, scored in results.scored.items():
        part = benchmark.reported[name]
        images = benchmark.images[part.images]
        rows = scored.indices.tolist()
        labels = (
            [-1] * len(rows) if images.labels is None or part.role == "ood" else [images.labels[row] for row in rows]
        )
        predictions = [-1] * len(rows) if scored.predictions is None else scored.predictions.tolist()
        columns = {
            "set": pa.array([name] * len(rows)),
            "role": pa.array([part.role] * len(rows)),
            "path": pa.array([images.names[row] for row in rows]),
            "label": pa.array(named(labels), pa.string()),
            "prediction": pa.array(named(predictions), pa.string()),
        }
        tables.append(pa.table(columns | {key: pa.array(score.numpy()) for key, score in scored.scores.items()}))
    pq.write_table(pa.concat_tables(tables), path, compression="zstd")


def _json_row(row: Row) -> dict[str, Any]:
    values = {name: estimate.value for name, estimate in row.metrics.items()}
    intervals = {name: [e.low, e.high] for name, e in row.metrics.items() if e.low is not None}
    about = {"detector": row.detector, "setting": row.setting, "ood": row.ood, "group": row.group}
    return about | values | {"n_id": row.n_id, "n_ood": row.n_ood, "intervals": intervals}
