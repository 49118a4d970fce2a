"""An attack by two processes, killed and resumed, gives the images of one process, to the byte."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
import tiny_clip
import yaml

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]


def started(root, name, *options):
    path = root / f"{name}_attack.yaml"
    keys = {"ood": "near", "pairs": 7, "batch_size": 1, "steps": 40, "lr": 0.02, "smoothness": 10.0}
    keys |= {"curve": {"pairs": 3, "smoothness": [0.0, 10.0]}, "defences": {"jpeg": 1}}
    experiment = tiny_clip.config(root, name, {"linear_probe": {"epochs": 2, "batch_size": 16}})
    content = {"name": name, "config": experiment, "runs_root": f"{root}/attacks", **keys}
    path.write_text(yaml.safe_dump(content))
    command = [sys.executable, "attack.py", "--config", str(path), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return forked.Popen(command, cwd=PROJECT, env=ENVIRONMENT, **pipes)


def finished(root, name, *options):
    process = started(root, name, *options)
    told, _ = process.communicate(timeout=240)
    assert process.returncode == 0, told
    return root / "attacks" / name


def pngs(run):
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in sorted(run.rglob("*.png"))}


def images(run):
    return {name: content for name, content in pngs(run).items() if name.startswith("images/")}


def test_two_processes_and_a_kill_change_no_image(tmp_path):
    root = tiny_clip.make(tmp_path)
    one = finished(root, "one")
    process = started(root, "two", *TWO)
    parts = root / "attacks" / "two" / "parts"
    while not (made := list(parts.glob("*.safetensors"))) and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert 0 < len(made) < 10 and not (root / "attacks" / "two" / "results.json").exists()
    early = {path: path.stat().st_mtime_ns for path in made}
    two = finished(root, "two", *TWO, "--resume")
    assert {path: path.stat().st_mtime_ns for path in made} == early  # they were not made again
    assert images(one) == images(two) and len(images(one)) == 7 * 4 + 3 * 5 + 3
    mine, theirs = (json.loads((run / "results.json").read_text()) for run in (one, two))
    for ours, others in zip(mine["rows"], theirs["rows"], strict=True):
        for key, value in ours.items():
            assert others[key] == (pytest.approx(value, abs=1e-6) if isinstance(value, float) else value), key


def test_processes_without_a_share_wait_for_the_others(tmp_path):
    """Two pairs are one batch: there is nothing to attack for the second process."""
    few = ["--pairs=2", "--batch_size=2", "--curve=null", "--defences={}"]
    run = finished(tiny_clip.make(tmp_path), "few", *TWO, *few)
    assert len(images(run)) == 2 * 2
