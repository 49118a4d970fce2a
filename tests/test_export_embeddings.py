"""The features of a run's images as one file, which other programs open as the docs show."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import judged_run
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_clip
import torch
from PIL import Image

from clip_ood import load
from clip_ood.errors import ConfigError, UserError
from clip_ood.experiments.commands.features import main
from clip_ood.folder.files import read_suspects

SNIPPETS = re.findall(
    r"^```python\n(.*?)^```$", (tiny_clip.PROJECT / "docs/own_images.md").read_text(), re.MULTILINE | re.DOTALL
)


def export(run, out, *options):
    main(["export", "--run", str(run), "--out", str(out), *options])
    return pq.read_table(out)


@pytest.fixture(scope="module")
def whole(root):
    """A cross-fitted run, of which an image cannot be read."""
    shutil.copytree(root / "data/id", root / "data/torn")
    (root / "data/torn/cat/torn.png").write_bytes(b"no image")
    keys = {"figures": False, "report": False, "cross_fit": 3}
    data = {"id": "torn", "splits": {"val": 0, "test": 0}, "max_unreadable": 0.1}
    return judged_run.make(root, "whole", "zero_shot", data=data, evaluation=keys, detectors=["knn"])


def test_it_holds_what_the_run_has_found_out_beside_the_features(root, whole, tmp_path, capsys):
    table = export(whole, tmp_path / "all.parquet").to_pylist()
    assert "55 images with their features" in capsys.readouterr().out
    rows = {row["path"]: row for row in table if row["role"] == "train"}
    scored = judged_run.scores(whole, "train")
    for each in read_suspects(whole / "suspects.csv"):
        row = rows.pop(each.path)
        assert (row["image"], row["label"], row["group"], row["score"]) == (
            each.image,
            each.label,
            each.group,
            each.score,
        )
        assert (row["x"], row["y"], row["score_knn"]) == (each.x, each.y, scored[each.path]["knn"])
    assert not rows
    near = [row for row in table if row["set"] == "near"]
    assert len(near) == 9 and all(row["score"] is None and row["score_knn"] is not None for row in near)
    predictor = load(whole)
    for row in [table[5], near[2]]:
        pixels = predictor.backbone.transform(Image.open(root / ("data/near" if row["set"] == "near" else "data/torn") / row["path"]))  # fmt: skip
        with torch.inference_mode():
            assert np.allclose(row["features"], predictor.outputs(pixels[None]).features[0].numpy(), atol=1e-5)


def test_the_encoder_is_named(whole, tmp_path):
    metadata = export(whole, tmp_path / "all.parquet").schema.metadata
    assert json.loads(metadata[b"encoder"])["model"].endswith("/clip")
    prepared = json.loads(metadata[b"preprocessing"])
    assert prepared["size"] == [32, 32] and prepared["mean"] == tiny_clip.PREPROCESSING["mean"]


def test_a_run_without_cross_fitting_scores_what_it_scored(root, tmp_path):
    run = judged_run.make(root, "usual", "linear_probe", detectors=["knn", "msp"])
    rows = export(run, tmp_path / "usual.parquet").to_pylist()
    assert {row["role"] for row in rows} == {"train", "val", "id", "ood"}
    assert {row["role"] for row in rows if row["score_msp"] is None} == {"train"}
    assert len(rows) == 46 + 9 and all(row["score"] is None and row["x"] is None for row in rows)


def test_files_are_not_overwritten_unasked(whole, tmp_path):
    out = tmp_path / "all.parquet"
    export(whole, out)
    before = out.stat().st_mtime_ns
    with pytest.raises(ConfigError, match=r"--out: .* is there already, and is kept. Add --overwrite"):
        export(whole, out)
    assert out.stat().st_mtime_ns == before
    export(whole, out, "--overwrite")
    assert out.stat().st_mtime_ns != before


@pytest.mark.parametrize(
    ("run", "out", "told"),
    [
        ("nowhere", "a.parquet", "--run: .* is no run: it holds no config.yaml"),
        ("whole", "a.csv", "--out: .*a.csv must end with .parquet"),
        ("whole", "no/a.parquet", "--out: there is no folder"),
    ],
)
def test_what_cannot_be_is_told_first(whole, tmp_path, run, out, told):
    with pytest.raises(ConfigError, match=told):
        export(whole.with_name(run), tmp_path / out)


def test_a_run_that_was_cut_off_is_told(whole, tmp_path):
    shutil.copy(whole / "config.yaml", tmp_path)
    with pytest.raises(ConfigError, match=r"--run: .* is no finished run: it lacks results\.json"):
        export(tmp_path, tmp_path / "a.parquet")


def test_removed_features_are_told(root, whole, tmp_path):
    shutil.move(root / "features", root / "gone")
    with pytest.raises(UserError, match=r"the features of \d+ of \d+ images are missing"):
        export(whole, tmp_path / "all.parquet")
    shutil.rmtree(root / "features", ignore_errors=True)
    shutil.move(root / "gone", root / "features")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_has_changed_is_told(root, whole, tmp_path):
    more = root / "data/torn/cat/more.png"
    shutil.copy(root / "data/near/0.png", more)
    with pytest.raises(ConfigError, match="was begun with other images"):
        export(whole, tmp_path / "all.parquet")
    more.unlink()


def test_the_features_of_a_tuned_encoder_are_not_in_the_store(root, tmp_path):
    run = judged_run.make(root, "tuned", "finetune", detectors=["knn"])
    with pytest.raises(UserError, match="has tuned its encoder"):
        export(run, tmp_path / "all.parquet")


@pytest.mark.parametrize("snippet", [each for each in SNIPPETS if "duckdb" in each])
def test_duckdb_opens_it_as_the_docs_show(whole, tmp_path, snippet):
    pytest.importorskip("duckdb", reason="needs duckdb: pip install duckdb")
    export(whole, tmp_path / "embeddings.parquet")
    ran = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    first = next(read_suspects(whole / "suspects.csv"))
    shown = [line.split("│")[1].strip() for line in ran.stdout.splitlines() if ".png" in line]
    assert shown[0] == first.path and len(shown) == 13 and first.path not in shown[1:]


def test_there_are_snippets():
    assert {name for each in SNIPPETS for name in ("duckdb", "fiftyone") if f"import {name}" in each} == {
        "duckdb",
        "fiftyone",
    }
