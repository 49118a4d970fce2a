"""Cross-fitted runs that are killed, and those of studies and attacks."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import forked
import judged_run
import pytest
import tiny_clip
import yaml
from judged_run import cross_fitted

import attack
import study
import train
from clip_ood.errors import ConfigError
from clip_ood.experiments.attack import conduct

pytestmark = pytest.mark.slow

TRAIN = Path(__file__).parents[1] / "train.py"
SPLITS = {"val": 0, "test": 0}
EVALUATION = {"figures": False, "report": False, "cross_fit": 4}


def config(root: Path, name: str, method: dict) -> str:
    data = {
        "root": f"{root}/data",
        "id": "id",
        "ood": {"near": "near", "far": "far"},
        "splits": SPLITS,
        "batch_size": 8,
    }
    return tiny_clip.config(root, name, method, data=data, evaluation=EVALUATION, detectors=["knn", "mahalanobis"])


def test_a_run_that_was_killed_between_its_folds_goes_on_to_the_same_ranks(root):
    data = {"ood": {"near": "near", "far": "far"}}
    whole = cross_fitted(root, "whole", "linear_probe", data, detectors=["knn", "mahalanobis"])
    name = config(root, "killed", judged_run.PROBE)
    process = forked.Popen([sys.executable, str(TRAIN), "--config", name], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "fold 3 of 4" in line:
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    killed = root / "runs" / "killed"
    assert (killed / "config.yaml").is_file() and not (killed / "suspects.csv").is_file()
    train.main(["--config", name, "--resume"])
    assert (killed / "suspects.csv").read_bytes() == (whole / "suspects.csv").read_bytes()
    assert judged_run.scores(killed) == judged_run.scores(whole)


def test_a_study_of_cross_fitted_runs_has_a_table_of_them(root):
    lines = {"1-NN": {"detector": "knn"}, "Mahalanobis": {"detector": "mahalanobis"}}
    keys = {"config": config(root, "base", {"zero_shot": {}}), "studies_root": f"{root}/studies", "shows": "table"}
    path = root / "crossed.yaml"
    path.write_text(yaml.safe_dump(keys | {"axes": {"folds": {"evaluation.cross_fit": [2, 4]}}, "lines": lines}))
    study.main(["--config", str(path)])
    runs = sorted((root / "studies" / "crossed").glob("*/suspects.csv"))
    assert [each.parent.name for each in runs] == ["2--1-nn", "4--1-nn"]
    table = (root / "studies" / "crossed" / "crossed.md").read_text()
    assert "Mahalanobis" in table and "near (n = 9)" in table


def test_an_attack_on_a_cross_fitted_run_needs_test_images(root):
    path = root / "on_crossed_attack.yaml"
    keys = {"ood": "near", "pairs": 4, "steps": 3, "lr": 0.02, "batch_size": 4, "runs_root": f"{root}/attacks"}
    path.write_text(yaml.safe_dump(keys | {"name": "crossed", "config": config(root, "base", {"zero_shot": {}})}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conduct, "load_features", lambda *given: pytest.fail("images are read"))
        with pytest.raises(ConfigError, match="compares what it makes with ID test images"):
            attack.main(["--config", str(path)])
    attack.main(["--config", str(path), "--overwrite", "--data.splits={val: 0, test: 0.3}"])
    folder = root / "attacks" / "crossed"
    results = tiny_clip.results(folder / "clean")
    assert (folder / "results.json").is_file() and results["suspects"]["images"] == results["split"]["train"] > 0
