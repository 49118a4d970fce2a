"""The snippets of docs/extending.md: a LightningModule and a Trainer of somebody's own, with our data and our evaluation; a callback
and a logger for our Trainer."""

from __future__ import annotations

import json
import os
import re
import sys

import forked
import pytest
import replica
import tiny_clip
from tiny_clip import PROJECT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return replica.imagenet(tmp_path_factory.mktemp("imagenet"))


def said(root, tmp_path, devices, *changes):
    page = (PROJECT / "docs" / "extending.md").read_text()
    script = re.search(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[1]
    for before, after in changes:
        assert before in script
        script = script.replace(before, after)
    (tmp_path / "mine.py").write_text(script)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "mine.py", str(root), str(devices), "--data.allow_partial=true"]
    return forked.run(command, cwd=tmp_path, env=environment)


def rows(ended):
    assert ended.returncode == 0, ended.stderr
    return {
        tuple(line.split()[:3]): float(line.split()[3])
        for line in ended.stdout.splitlines()
        if line.startswith("standard ")
    }


def test_her_own_method_takes_part(root, tmp_path):
    one, two = (rows(said(root, tmp_path, devices)) for devices in (1, 2))
    sets = {ood for _, ood, _ in one}
    assert "mean" in sets and len(sets) == 7 and {detector for _, _, detector in one} == {"knn", "msp", "energy"}
    assert one.keys() == two.keys() and all(abs(one[key] - two[key]) < 1e-6 for key in one)


def test_a_trainer_that_would_divide_the_images_again_is_refused(root, tmp_path):
    ended = said(root, tmp_path, 2, ("use_distributed_sampler=False", "use_distributed_sampler=True"))
    assert ended.returncode != 0 and "give it use_distributed_sampler=False" in ended.stderr


def test_a_module_without_a_head_has_the_detectors_of_features(root, tmp_path):
    ended = said(
        root,
        tmp_path,
        1,
        ("    def reference(self):", "    def unused(self):"),
        ("self.head(features), batch.labels", "None, batch.labels"),
    )
    assert {detector for _, _, detector in rows(ended)} == {"knn"}


def test_what_is_missing_or_cannot_be_shared_is_told_before_any_training(root, tmp_path):
    ended = said(root, tmp_path, 1, ("tables=data.evaluated", "tables=()"))
    assert ended.returncode != 0 and "give it tables=data.evaluated" in ended.stderr
    ended = said(root, tmp_path, 1, ("batch_size=16", "batch_size=1000"))
    assert ended.returncode != 0 and "at most the 80 training images" in ended.stderr


def test_a_callback_and_a_logger_of_hers_take_part(tmp_path):
    page = (PROJECT / "docs" / "extending.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for name, what in (("my_callbacks", "class WeightNorm"), ("my_loggers", "class JSONLines")):
        (tmp_path / f"{name}.py").write_text(next(block for block in blocks if what in block))
    options = [f"--trainer.{key}={value}" for key, value in re.findall(r"--trainer\.(callbacks|logger)='(.*)'", page)]
    assert len(options) == 2
    root = tiny_clip.make(tmp_path / "own")
    config = tiny_clip.config(root, "hers", {"linear_probe": {"epochs": 12, "batch_size": 16}}, detectors=["knn"])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, str(PROJECT / "train.py"), "--config", config, *options]
    ended = forked.run(command, cwd=tmp_path, env=environment)
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert len([line for line in lines if "train/weight_norm" in line]) == 2  # epochs 0 and 10
    assert lines[-1]["method"] == "linear_probe" and any("ood/mean/knn/auroc" in line for line in lines)
    assert list((root / "runs" / "hers").glob("events.out*"))
