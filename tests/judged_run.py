"""Finished runs on the tiny CLIP with ID val images enough for a threshold, for tests of what judges new images; and detect.py."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tiny_clip

import detect
import eval as evaluation
import train

SPLITS = {"val": 0.45, "test": 0.2}  # 20 or so of 46 images to calibrate on
PROBE = {"linear_probe": {"epochs": 2, "batch_size": 16}}
METHODS = {
    "zero_shot": {"zero_shot": {}},
    "linear_probe": PROBE,
    "plp": {"plp": {"epochs": 2, "batch_size": 16, "min_confidence": 0.0}},
    "finetune": {"finetune": {"epochs": 1, "warmup_epochs": 0, "batch_size": 8}},
}


def make(root: Path, name: str, method: str = "linear_probe", **keys: Any) -> Path:
    """The folder of a finished run."""
    data = keys.pop("data", {})
    content = {
        "data": {"root": f"{root}/data", "id": "id", "ood": {"near": "near"}, "splits": SPLITS, "batch_size": 8} | data,
    }
    config = tiny_clip.config(root, name, METHODS[method], **content, **keys)
    (evaluation if method == "zero_shot" else train).main(["--config", config])
    return root / "runs" / name


def cross_fitted(root: Path, name: str, method: str = "zero_shot", data: dict | None = None, **keys: Any) -> Path:
    """The folder of a run that puts no image aside, and scores each without itself."""
    keys.setdefault("evaluation", {"figures": False, "report": False, "cross_fit": 4})
    return make(root, name, method, data={"splits": {"val": 0, "test": 0}} | (data or {}), **keys)


def with_a_copy(root: Path) -> Path:
    """A cross-fitted run on all 46 images and a copy of one of them."""
    shutil.copy(root / "data/id/cat/0.png", root / "data/id/cat/again.png")
    return cross_fitted(root, "whole", detectors=["knn", "mahalanobis", "mcm"])


def scores(run: Path, role: str | None = None) -> dict[str, dict[str, Any]]:
    """Rows of scores.parquet by path, of one role or all."""
    rows = pq.read_table(run / "scores.parquet").to_pylist()
    return {row["path"]: row for row in rows if role in (None, row["role"])}


def judged(*arguments, status=0):
    """Runs detect.py; it ends with `status`."""
    with pytest.raises(SystemExit) as ended:
        detect.main([str(each) for each in arguments])
    assert (ended.value.code or 0) == status


def read(path: Path) -> list[dict[str, str]]:
    """Predictions, or images that could not be judged, as a CSV file lists them."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))
