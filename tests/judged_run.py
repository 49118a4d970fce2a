"""Finished runs on the tiny CLIP with ID val images enough for a threshold, for tests of what judges new images; and detect.py."""

from __future__ import annotations

import csv
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
    """Verdicts, or images that could not be judged, as a CSV file lists them."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))
