"""Writes a saved detector with other thresholds as a new folder; nothing is fitted, and the old folder stays as it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from clip_ood.calibration import Calibration, summary
from clip_ood.detect.confirmed import JudgedImage
from clip_ood.detect.manifest import STATE
from clip_ood.detect.save import calibration_entries, calibration_tensors, hashes, seal
from clip_ood.detect.saved import SavedDetector
from clip_ood.files.tensor_files import save_tensors
from clip_ood.files.writing import written_whole
from clip_ood.files.written_names import path_columns

FILE = "calibrated_on.parquet"


def calibrations_of(
    images: Sequence[JudgedImage], columns: Sequence[str], class_names: Sequence[str] | None
) -> dict[str, Calibration]:
    """Returns the calibration of each detector by its scores of these images, which it has not seen."""
    places = {name: place for place, name in enumerate(class_names or ())}
    classes = torch.tensor([places.get(each.predicted, -1) for each in images]) if places else None
    return {
        name: Calibration(torch.tensor([each.scores[name] for each in images]), classes=classes) for name in columns
    }


def save_recalibrated(
    folder: Path,
    saved: SavedDetector,
    calibrations: Mapping[str, Calibration],
    images: Sequence[JudgedImage],
    about: Mapping[str, Any],
) -> None:
    """Writes `folder`, which may not be there yet, whole or not at all; the manifest says `about` as its entry "recalibrated".

    Raises: DetectorFolderError if the old folder is damaged.
    """
    saved.check_files()
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a call that was killed
    for name in saved.manifest["files"]:
        if name not in (STATE, FILE):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(saved.folder / name, partial / name)
    state = {name: value for name, value in saved.state().items() if not name.startswith("calibration")}
    save_tensors(state | calibration_tensors(calibrations), partial / STATE)
    contents = pa.array([bytes.fromhex(each.content) for each in images], pa.binary(16))
    with written_whole(partial / FILE) as file:
        pq.write_table(pa.table({**path_columns([each.path for each in images]), "content": contents}), file)
    kept = [
        {key: value for key, value in each.items() if key not in ("choice", "calibrated_by")}
        | calibration_entries(calibrations[each["column"]])
        for each in saved.manifest["detectors"]
    ]
    manifest = saved.manifest | {
        "detectors": kept,
        "calibration": summary(calibrations, saved.accept),
        "recalibrated": {**about, "before": saved.manifest["digest"]},
    }
    seal(partial, manifest | {"files": hashes(partial, partial.rglob("*"))})
    os.replace(partial, folder)
