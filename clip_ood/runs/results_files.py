"""Writes results.json, results.csv, joint.csv, classes.csv, stream.csv and scores.parquet of a run, the contract with everything that reads runs."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clip_ood.data.benchmark import Benchmark
from clip_ood.evaluation import Results
from clip_ood.files.text_files import not_utf8
from clip_ood.files.writing import written_text, written_whole
from clip_ood.files.written_names import cells, json_bytes, path_columns
from clip_ood.metrics.curves import METRICS
from clip_ood.runs.class_table import class_rows, write_classes
from clip_ood.runs.joint_files import joint_content, write_joint
from clip_ood.runs.run_folder import CLASSES, JOINT, SCORES, STREAM
from clip_ood.runs.scores import read_scores
from clip_ood.runs.stream_files import write_stream
from clip_ood.table import Row

COLUMNS = ("detector", "setting", "ood", "group", *METRICS, "n_id", "n_ood")
NAMES = ("detector", "setting", "ood", "group")
OVER_SEEDS = ("seeds", "auroc_std", "auroc_low", "auroc_high")  # further columns of a run over several seeds


def write_results(folder: Path, results: Results, about: dict[str, Any], benchmark: Benchmark) -> None:
    """Writes all these files; results.json comes last, since it marks a run as finished.

    `about`: run, method, encoder, seeds, split (whether seeds redraw the ID test images; how many images it trains on, holds out
    as val and tests on), bank, pseudo_labels, sweep (the heads of a probe sweep; also written as sweep.csv), shared_images (pairs
    of sets, see `clip_ood.leaks.copies.Shared`), dropped (how many images were taken out of which set), predictor (what predicts
    classes best on ID val), stream (of test-time methods, see `clip_ood.runs.stream_files`), versions.
    """
    rows = [_json_row(row) for row in results.rows]
    write_table(folder / "results.csv", rows)
    write_scores(folder / SCORES, results, benchmark)
    thresholds = (about.get("calibration") or {}).get("thresholds") or {}
    classes = class_rows(read_scores(folder / SCORES), thresholds, about.get("by_folds") or ())
    write_classes(folder / CLASSES, classes)
    joint = results.joint and joint_content(results.joint)
    if joint:
        write_joint(folder / JOINT, joint)
    write_stream(folder / STREAM, about.get("stream"))
    if about["sweep"]:
        write_sweep(folder / "sweep.csv", about["sweep"])
    content = {
        **about,
        "decisions": benchmark.decided and benchmark.decided.about(),
        "accuracy": results.accuracy,
        "knn_accuracy": results.knn_accuracy,
        "joint": joint,
        "omitted": [asdict(omitted) for omitted in results.omitted],
        "notes": [{"detector": name, "note": note} for name, notes in results.notes.items() for note in notes],
        "rows": rows,
    }
    write_json(folder / "results.json", content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file, whole or not at all."""
    with written_whole(path) as file:
        file.write(json_bytes(content))


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the rows of results.json as CSV, with metrics in percent with 2 decimals."""
    _write_csv(path, COLUMNS, [{**row, **_percent(row, METRICS)} for row in rows])


def write_mean_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the rows of a run over several seeds as CSV: means and, for the AUROC, the standard deviation over the row's `seeds`
    and the 95 % interval, which are empty if there are none.
    """
    lines = []
    for row in rows:
        low, high = row["intervals"].get("auroc", (None, None))
        spread = {"auroc_std": row["std"]["auroc"], "auroc_low": low, "auroc_high": high}
        lines.append({**row, **_percent(row, METRICS), **_percent(spread, spread)})
    _write_csv(path, (*COLUMNS, *OVER_SEEDS), lines)


def _write_csv(path: Path, columns: Iterable[str], lines: list[dict[str, Any]]) -> None:
    with written_text(path) as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(cells(line, NAMES) for line in lines)


def _percent(values: dict[str, Any], names: Iterable[str]) -> dict[str, str]:
    return {name: "" if values[name] is None else f"{100 * values[name]:.2f}" for name in names}


def write_sweep(path: Path, heads: list[dict[str, Any]]) -> None:
    """Writes a line for each head of a probe sweep: its settings, val_accuracy (a fraction), val_nll (empty: not finite), chosen."""
    with written_text(path) as file:
        writer = csv.DictWriter(file, heads[0])
        writer.writeheader()
        writer.writerows(heads)


def write_scores(path: Path, results: Results, benchmark: Benchmark) -> None:
    """Writes a row for each image: set, role, path (see `path_columns`), label and prediction (class names), image (8 bytes of the hash
    of its content, or of the original's if it is a corrupted one), and all scores."""
    names = benchmark.class_names

    def named(classes: list[int]) -> list[str | None]:
        return [None if label < 0 else names[label] if names else str(label) for label in classes]

    exact = any(not_utf8(name) for part in benchmark.reported.values() for name in benchmark.images[part.images].names)
    tables = []
    for name, scored in results.scored.items():
        part = benchmark.reported[name]
        images = benchmark.images[part.images]
        rows = scored.indices.tolist()
        labels = (
            [-1] * len(rows) if images.labels is None or part.role == "ood" else [images.labels[row] for row in rows]
        )
        numbers = results.images.get(name)
        predictions = [-1] * len(rows) if scored.predictions is None else scored.predictions.tolist()
        columns = {
            "set": pa.array([name] * len(rows)),
            "role": pa.array([part.role] * len(rows)),
            **path_columns([images.names[row] for row in rows], exact),
            "label": pa.array(named(labels), pa.string()),
            "prediction": pa.array(named(predictions), pa.string()),
            "image": pa.array([None] * len(rows) if numbers is None else numbers.tolist(), pa.int64()),
        }
        tables.append(pa.table(columns | {key: pa.array(score.numpy()) for key, score in scored.scores.items()}))
    with written_whole(path) as file:
        pq.write_table(pa.concat_tables(tables), file, compression="zstd")


def _json_row(row: Row) -> dict[str, Any]:
    values = {name: row.metrics[name].value if name in row.metrics else None for name in METRICS}
    intervals = {name: [e.low, e.high] for name, e in row.metrics.items() if e.low is not None}
    about = {"detector": row.detector, "setting": row.setting, "ood": row.ood, "group": row.group}
    return about | values | {"n_id": row.n_id, "n_ood": row.n_ood, "intervals": intervals}
