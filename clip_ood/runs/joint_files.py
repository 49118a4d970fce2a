"""Writes what a run says of accuracy and rejection together: joint.csv, and `joint` in results.json."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from clip_ood.files.writing import written_text
from clip_ood.files.written_names import cells
from clip_ood.joint import Joint, JointRow
from clip_ood.metrics.confidences import BINS
from clip_ood.metrics.joint import OF_ID, OF_SETS

COLUMNS = ("detector", "ood", *OF_ID, "auoscr", "auoscr_low", "auoscr_high", "scod_aurc", "n_id", "n_ood")


def joint_content(joint: Joint) -> dict[str, Any]:
    """Returns what results.json says under `joint`, as `clip_ood.runs.joint_records` declares it; values are fractions."""
    return {
        "predicted_by": joint.predicted_by,
        "n_id": joint.n_id,
        "ood_cost": joint.ood_cost,
        "calibration_errors": [
            {"by": by, "value": value, "n": joint.n_id, "bins": BINS} for by, value in joint.calibration_errors.items()
        ],
        "absent": [{"metric": name, "reason": reason} for name, reason in joint.absent.items()],
        "rows": [_row(row) for row in joint.rows],
    }


def write_joint(path: Path, content: dict[str, Any]) -> None:
    """Writes the rows as CSV, with metrics in percent with 2 decimals, empty where a row has none; a run without rows has no file."""
    if not content["rows"]:
        path.unlink(missing_ok=True)  # of earlier results
        return
    with written_text(path) as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for row in content["rows"]:
            low, high = row["intervals"].get("auoscr", (None, None))
            percents = {name: row[name] for name in (*OF_ID, *OF_SETS)} | {"auoscr_low": low, "auoscr_high": high}
            line = {name: "" if value is None else f"{100 * value:.2f}" for name, value in percents.items()}
            writer.writerow(cells(row | line, ("detector", "ood")))


def _row(row: JointRow) -> dict[str, Any]:
    values = {name: row.metrics[name].value if name in row.metrics else None for name in (*OF_ID, *OF_SETS)}
    intervals = {name: [each.low, each.high] for name, each in row.metrics.items() if each.low is not None}
    about = {"detector": row.detector, "ood": row.ood, "n_id": row.n_id, "n_ood": row.n_ood}
    return about | values | {"intervals": intervals}
