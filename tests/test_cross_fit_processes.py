"""Cross-fitting by two processes is that of one, a head trained for each fold included."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import forked
import pyarrow.parquet as pq
import pytest
import tiny_clip

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1]
METHODS = {"zero_shot": {"zero_shot": {}}, "linear_probe": {"linear_probe": {"epochs": 2, "batch_size": 8}}}


def run(root, name, method, devices):
    keys = {"figures": False, "report": False, "cross_fit": 3, "hold_out_classes": 2, "batch_size": 7}
    data = {
        "root": f"{root}/data",
        "id": "id",
        "ood": {"near": "near"},
        "splits": {"val": 0, "test": 0},
        "batch_size": 8,
    }
    trainer = {"accelerator": "cpu", "devices": devices, "enable_progress_bar": False}
    detectors = ["knn", "lof", "mahalanobis", *(["msp"] if method == "linear_probe" else [])]
    path = tiny_clip.config(
        root, name, METHODS[method], data=data, evaluation=keys, trainer=trainer, detectors=detectors
    )
    done = forked.run(
        [sys.executable, "train.py", "--config", path],
        cwd=PROJECT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=570,
    )
    assert done.returncode == 0, done.stderr
    return root / "runs" / name


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_score_as_one_does(root, method):
    one, two = (run(root, f"{method}_{devices}", method, devices) for devices in (1, 2))
    tables = [pq.read_table(place / "scores.parquet") for place in (one, two)]
    assert tables[0].column_names == tables[1].column_names and len(tables[0]) == len(tables[1]) == 55
    for name in ("path", "role", "prediction"):
        assert tables[0][name] == tables[1][name]
    for name in ("knn", "lof", "mahalanobis"):
        assert tables[0][name].to_numpy() == pytest.approx(tables[1][name].to_numpy(), rel=1e-4)
    results = [json.loads((place / "results.json").read_text()) for place in (one, two)]
    assert results[0]["suspects"] == results[1]["suspects"]
    for name, value in results[0]["calibration"]["thresholds"].items():
        assert results[1]["calibration"]["thresholds"][name] == pytest.approx(value, rel=1e-3)
    suspects = [(place / "suspects.csv").read_text().splitlines()[0] for place in (one, two)]
    assert suspects[0] == suspects[1]
