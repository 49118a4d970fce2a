"""Runs pass without what a laptop with macOS or Windows lacks."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import judged_run
import pytest
import tiny_clip
import yaml

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny_clip.make(tmp_path_factory.mktemp("portable"))


def passes(root, *lines, before=()):
    command = [*before, sys.executable, PROJECT / "tests" / "portable.py", root]
    text = "".join(shlex.join(map(str, line)) + "\n" for line in lines)
    done = subprocess.run(command, input=text, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def config(root, name, method, workers=0, **keys):
    data = {
        "root": f"{root}/data",
        "id": "id",
        "ood": {"near": "near", "far": "far"},
        "splits": judged_run.SPLITS,
        "batch_size": 8,
        "num_workers": workers,
    }
    return tiny_clip.config(root, name, method, data=data, **keys)


def test_runs_pass_without_what_other_systems_lack(root):
    attack = {
        "config": config(root, "attacked", {"zero_shot": {}}, detectors=["knn", "mcm"]),
        "runs_root": f"{root}/runs",
    }
    attack |= {"ood": "near", "pairs": 4, "steps": 3, "lr": 0.02, "smoothness": 10.0, "batch_size": 2}
    (root / "attack.yaml").write_text(yaml.safe_dump(attack))
    train = ["train", "--config", config(root, "run", judged_run.PROBE, evaluation={"resamples": 0})]
    detect = ["detect", "--run", root / "runs" / "run", root / "data" / "near", "--copy-ood", root / "odd"]
    said = passes(
        root,
        train,
        [*train, "--overwrite"],
        ["eval", "--run", root / "runs" / "run", "--detectors=[knn, msp]"],
        [*detect, "--out", root / "v.csv"],
        [*detect, "--out", root / "v.parquet"],
        ["attack", "--config", root / "attack.yaml"],
        ["eval", "--compare", root / "runs" / "run", root / "runs" / "run-eval", "--html", root / "page.html"],
    )
    assert "could not be merged" not in said and "9 images judged" in said
    assert (root / "runs" / "run" / "report.html").is_file() and len((root / "v.csv").read_text().splitlines()) == 10
    assert not [
        each.name
        for each in (*root.iterdir(), *(root / "runs").iterdir())
        if each.name.startswith(".") or "tmp" in each.name
    ]


def test_workers_are_spawned(root):
    fine_tuning = {"finetune": {"epochs": 1, "warmup_epochs": 0, "batch_size": 8, "augment": "rand-m9-n2-inc1"}}
    passes(
        root,
        ["train", "--config", config(root, "spawned", fine_tuning, workers=1, features_root=f"{root}/others")],
        [
            "detect",
            "--run",
            root / "runs" / "spawned",
            root / "data" / "near",
            "--workers",
            "1",
            "--out",
            root / "spawned.csv",
        ],
    )
    assert len((root / "spawned.csv").read_text().splitlines()) == 10
