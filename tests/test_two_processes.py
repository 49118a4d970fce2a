"""An evaluation by several processes is that of one to 1e-6, for sets that do not divide: by two and three of 101 ID, 97, 17 and 1 OOD
images, by eight of 5 and 1, where most hold none."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import forked
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1]
SIZES = {"train/cat": 30, "train/dog": 31, "test/cat": 50, "test/dog": 51, "near": 97, "far": 17, "lone": 1}
SMALL = {"train/cat": 3, "train/dog": 2, "test/cat": 2, "test/dog": 3, "near": 5, "far": 1, "lone": 1}


def evaluate(root, name, *options):
    path = root / f"{name}.yaml"
    path.write_text(
        f"""
data: {{root: {root}/data, id: {{train: train, test: test}}, ood: {{near: near, far: far, lone: lone}}, batch_size: 16}}
backbone: {{library: timm, model: test_vit}}
method: {{zero_shot: {{}}}}
evaluation: {{figures: false, report: false, batch_size: 13}}
runs_root: {root}/runs
features_root: {root}/features
trainer: {{accelerator: cpu, devices: 1, enable_progress_bar: false}}
"""
    )
    command = [sys.executable, "eval.py", "--config", str(path), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = forked.run(command, cwd=PROJECT, env=environment, timeout=570)
    assert done.returncode == 0, done.stderr
    return root / "runs" / name


def with_images(root, sizes):
    generator = np.random.default_rng(0)
    for number, (place, count) in enumerate(sizes.items()):
        folder = root / "data" / place
        folder.mkdir(parents=True)
        for index in range(count):
            pixels = generator.normal(100 + 8 * number, 60, (8, 8, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return with_images(tmp_path_factory.mktemp("processes"), SIZES)


@pytest.fixture(scope="module")
def alone(root):
    return evaluate(root, "one")


@pytest.mark.parametrize("devices", [2, 3])
def test_every_metric_is_that_of_one_process(root, alone, devices):
    several = evaluate(root, f"of_{devices}", f"--trainer.devices={devices}", "--trainer.strategy=ddp")
    tables = assert_same(alone, several)
    assert tables[0]["bank"]["images"] == tables[1]["bank"]["images"] > 40
    assert {(row["n_id"], row["n_ood"]) for row in tables[1]["rows"]} == {(101, 97), (101, 17), (101, 1), (101, 115)}


def test_eight_processes_of_which_most_hold_nothing(tmp_path):
    """Extraction is theirs, too, into another store: four sets are four parts, for eight processes."""
    root = with_images(tmp_path, SMALL)
    alone = evaluate(root, "one")
    options = ["--trainer.devices=8", "--trainer.strategy=ddp", f"--features_root={root}/features_of_eight"]
    tables = assert_same(alone, evaluate(root, "eight", *options))
    assert {(row["n_id"], row["n_ood"]) for row in tables[1]["rows"]} == {(5, 5), (5, 1), (5, 7)}
    assert {row["detector"] for row in tables[1]["rows"]} >= {"knn", "mahalanobis"}


def assert_same(alone, several):
    """The tables of both runs, which are equal, as are the scores of every image."""
    tables = [json.loads((run / "results.json").read_text()) for run in (alone, several)]
    assert tables[1]["knn_accuracy"] == pytest.approx(tables[0]["knn_accuracy"], abs=1e-6)
    assert_equal_rows(*(table["rows"] for table in tables))
    joint = [table["joint"] for table in tables]
    assert joint[1] | {"rows": []} == joint[0] | {"rows": []} and joint[0]["predicted_by"] == "knn"
    assert_equal_rows(joint[0]["rows"], joint[1]["rows"])
    scores = [pq.read_table(run / "scores.parquet") for run in (alone, several)]
    for column in ("set", "path"):
        assert scores[0][column] == scores[1][column]
    for detector in scores[0].column_names[6:]:
        np.testing.assert_allclose(scores[1][detector], scores[0][detector], rtol=1e-5, atol=1e-6, err_msg=detector)
    return tables


def assert_equal_rows(first, second):
    for mine, theirs in zip(first, second, strict=True):
        for key, value in mine.items():
            assert theirs[key] == (pytest.approx(value, abs=1e-6) if isinstance(value, float) else value), key
