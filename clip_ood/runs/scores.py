"""Reads the scores that a run wrote, and the threshold from which each detector accepts images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from clip_ood.detectors.names import ABOUT
from clip_ood.errors import UserError
from clip_ood.files.written_names import paths_of
from clip_ood.process.called import called
from clip_ood.runs import files as run_files
from clip_ood.runs.files import IMAGE
from clip_ood.runs.run_folder import scored_again

ACCEPT = 0.95  # of the ID test images, if a run is not calibrated


@dataclass(frozen=True)
class ScoredSet:
    """An image set of N images: paths, a number for each content (None if not known), true and predicted classes (None if there are none),
    scores (N,) by detector."""

    name: str
    role: str
    paths: list[str]
    images: list[int] | None
    labels: list[str | None]
    predictions: list[str | None]
    scores: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.paths)

    def accepted(self, detector: str, threshold: float) -> int:
        """Returns how many images score at least the threshold."""
        return int((self.scores[detector] >= threshold).sum())


@dataclass(frozen=True)
class Thresholds:
    """The score from which each detector accepts an image, and how it was found."""

    of: dict[str, float]
    how: str


def read_scores(path: Path) -> list[ScoredSet]:
    """Returns the sets of a scores.parquet that results are reported on, in its order, with detectors named by its columns. Raises as `scored_again`.

    Training images have the role id where there are no ID test images.
    """
    with scored_again():
        table = run_files.read_scores(path)
    detectors = [name for name in table.column_names if name not in ABOUT]
    sets = []
    for name in table["set"].unique().to_pylist():
        rows = table.filter(pc.equal(table["set"], name))
        scores = {detector: rows[detector].to_numpy().astype(np.float64) for detector in detectors}
        known = IMAGE in table.column_names and not rows[IMAGE].null_count
        images = rows[IMAGE].to_pylist() if known else None
        about = (paths_of(rows), images, *(rows[column].to_pylist() for column in ("label", "prediction")))
        sets.append(ScoredSet(name, rows["role"][0].as_py(), *about, scores))
    if all(each.role != "id" for each in sets):
        sets = [replace(each, role="id") if each.role == "train" else each for each in sets]
    return [each for each in sets if each.role in ("id", "csid", "ood")]


def thresholds(calibration: dict[str, Any] | None, id_test: ScoredSet) -> Thresholds:
    """Returns the thresholds of a run's calibration or, without one, those that accept 95 % of the ID test images.

    Raises: ValueError if the calibration lacks a detector.
    """
    if calibration and calibration["thresholds"]:
        about = calibration.get("claim", "about " if calibration["default"] in calibration.get("chosen", {}) else "")
        on = "ID images, each scored without it" if calibration.get("on") == "train" else "ID val images"
        expected = (
            f", where {about}{100 * calibration['expected']:.1f}\N{NO-BREAK SPACE}% are expected to pass"
            if calibration["expected"]
            else ""
        )
        if missing := sorted(id_test.scores.keys() - calibration["thresholds"].keys()):
            raise UserError(
                f"results.json states no threshold of {missing[0]}, and scores.parquet has its scores: score the run again, "
                f"{called('eval')} --run RUN"
            )
        accept, n = calibration["accept"], calibration["n"]
        how = f"is calibrated to accept {100 * accept:g}\N{NO-BREAK SPACE}% of new ID images or more, on {n} {on}{expected}"
        return Thresholds(calibration["thresholds"], how)
    why = "the run holds no calibration on ID val images"
    if calibration:
        why = f"too few ID val images to calibrate (n = {calibration['n']}, {calibration['needed']} needed)"
    passed = -(-len(id_test) * 19 // 20)  # in integers, since 0.95 is no exact float
    found = {name: float(np.sort(scores)[-passed]) for name, scores in id_test.scores.items()}
    return Thresholds(found, f"accepts {100 * ACCEPT:g}\N{NO-BREAK SPACE}% of ID test images; {why}")
