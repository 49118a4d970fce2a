"""Collects the results of a study as one long table, with a row for each point and OOD set."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.compute as pc

from clip_ood.experiments.study.plan import Plan
from clip_ood.files.writing import written_text
from clip_ood.files.written_names import cells, paths_of
from clip_ood.metrics.curves import METRICS
from clip_ood.metrics.ood import MEAN
from clip_ood.runs.results_table import intervals_told, missing_seeds, told
from clip_ood.runs.run_folder import of_seed, read_scores

Results = Mapping[str, dict[str, Any]]  # run -> content of its results.json
SPREAD = ("auroc_std", "auroc_low", "auroc_high")
PERCENT = (*METRICS, *SPREAD, "accuracy", "knn_accuracy", "labels_passed", "labels_right")
NUMBERS = {*PERCENT, "seeds", "n_id", "n_ood", "fewest_labels", "most_labels"}


def values(plan: Plan, results: Results) -> list[dict[str, Any]]:
    """Returns a row for each point and OOD set, and for their mean.

    Its columns are axes, line, run, detector, ood, metrics (fractions; means over seeds), auroc_std over seeds, the 95 % interval
    auroc_low, auroc_high, seeds (how many have the detector), n_id, n_ood; and for the run: accuracy, knn_accuracy, the share of
    pseudo-labels that passed (labels_passed) and of those the share that is right, and the smallest and largest number of labels
    in a class that it was trained on. None stands for what is not there.

    The accuracy of a corrupted set is that on its own images.
    """
    rows = []
    for point in plan.points:
        if (found := results.get(point.run)) is None:
            continue
        about = dict.fromkeys(plan.study.axes) | point.labels | {"line": point.line, "run": point.run}
        of_run = _of_run(found)
        shifted = _accuracies(plan, point.run, found) if plan.study.shows == "shift" else {}
        rows += [
            about
            | {"detector": point.detector, "ood": row["ood"], "group": row["group"]}
            | {name: row[name] for name in METRICS}
            | _spread(row)
            | {"seeds": row.get("seeds", len(found["seeds"])), "n_id": row["n_id"], "n_ood": row["n_ood"]}
            | of_run
            | ({"accuracy": shifted[row["ood"]]} if row["ood"] in shifted else {})
            for row in found["rows"]
            if row["detector"] == point.detector and row["setting"] == "standard"
        ]
    return rows


def missing(plan: Plan, results: Results) -> list[str]:
    """Returns the points whose detector a run lacks, in all seeds or in some, each as a line that says why."""
    lines = []
    for point in plan.points:
        if (found := results.get(point.run)) is None:
            continue
        of_detector = [row for row in found["rows"] if row["detector"] == point.detector]
        few = missing_seeds(found).get(point.detector) if of_detector else f"0 of {len(found['seeds'])} seeds"
        reasons = [told(each, "reason") for each in found["omitted"] if each["detector"] == point.detector]
        if few:
            why = f" ({'; '.join(reasons)})" if reasons else ""
            lines.append(f"{point.line}, {point.run}: {point.detector} in {few}{why}")
    return list(dict.fromkeys(lines))


def over_seeds(results: Results) -> dict[int, str]:
    """Returns the numbers of seeds that the runs have, if there are several, and what their intervals are computed from."""
    return {len(found["seeds"]): intervals_told(found) for found in results.values() if len(found["seeds"]) > 1}


def write_values(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the rows as CSV, with fractions in percent with 2 decimals."""
    texts = rows[0].keys() - NUMBERS
    with written_text(path) as file:
        writer = csv.DictWriter(file, cells(rows[0], texts))
        writer.writeheader()
        for row in rows:
            percent = {key: f"{100 * row[key]:.2f}" for key in PERCENT if row[key] is not None}
            writer.writerow(cells(row | percent, texts))


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of the mean over OOD sets."""
    return [row for row in rows if row["ood"] == MEAN]


def _spread(row: dict[str, Any]) -> dict[str, float | None]:
    low, high = row["intervals"].get("auroc", (None, None))
    return dict(zip(SPREAD, (row.get("std", {}).get("auroc"), low, high), strict=True))


def _of_run(found: dict[str, Any]) -> dict[str, Any]:
    pseudo, trained = found["pseudo_labels"] or {}, found["trained_on"] or {}
    return {
        "accuracy": found["accuracy"],
        "knn_accuracy": found["knn_accuracy"],
        "labels_passed": pseudo["passed"] / pseudo["images"] if pseudo else None,
        "labels_right": pseudo.get("accuracy"),
        "fewest_labels": trained.get("fewest"),
        "most_labels": trained.get("most"),
    }


def _accuracies(plan: Plan, run: str, found: dict[str, Any]) -> dict[str, float]:
    """Returns the share of right predictions on each corrupted set, whose images have the paths of the ID test images that they
    show.
    """
    of_set: dict[str, list[float]] = {}
    for seed in found["seeds"]:
        table = read_scores(of_seed(plan.folder / run, seed), ["set", "path", "label", "prediction"])
        clean = table.filter(pc.equal(table["set"], "id_test"))
        if not clean["prediction"].drop_null():
            return {}
        label = dict(zip(paths_of(clean), clean["label"].to_pylist(), strict=True))
        for name in pc.unique(table["set"]).to_pylist():
            if name == "id_test" or name in plan.runs[run].data.ood:
                part = table.filter(pc.equal(table["set"], name))
                pairs = zip(paths_of(part), part["prediction"].to_pylist(), strict=True)
                right = [label[path] == prediction for path, prediction in pairs]
                of_set.setdefault(name, []).append(fmean(right))
    return {name: fmean(shares) for name, shares in of_set.items()}
