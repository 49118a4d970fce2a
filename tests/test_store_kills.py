"""Runs that are killed, and runs that meet in one feature store."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
from store_lab import draw_images, segments

from clip_ood.features.entries import Entries

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1]


@pytest.fixture
def many(tmp_path):
    """300 images, so many that a run is met in the midst of them."""
    draw_images(tmp_path / "data" / "id", 300)
    return tmp_path


def start(root, name, store, *options, **variables):
    path = root / f"{name}.yaml"
    path.write_text(
        f"""
data: {{root: {root}/data, id: id, batch_size: 8}}
backbone: {{library: timm, model: test_vit}}
method: {{zero_shot: {{}}}}
detectors: [knn]
evaluation: {{figures: false, report: false}}
runs_root: {root}/runs
features_root: {root}/{store}
trainer: {{accelerator: cpu, devices: 1, enable_progress_bar: false}}
"""
    )
    command = [
        sys.executable,
        str(PROJECT / "tests" / "small_parts.py"),
        "eval",
        "--config",
        str(path),
        "--overwrite",
        *options,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return forked.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process):
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, output


def entries(store):
    """Every image of a store: identity -> the bytes of its arrays."""
    found = {}
    for folder in store.glob("*/images"):
        for segment in Entries(folder).segments:
            for row, identity in enumerate(segment.identities.tolist()):
                values = {name: array[row].contiguous().numpy().tobytes() for name, array in segment.arrays.items()}
                assert found.setdefault(tuple(identity), values) == values
    return found


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_a_killed_run_goes_on_with_any_number_of_processes(many, devices):
    finish(start(many, "whole", "whole"))
    killed = start(many, "killed", "store")
    while not segments(many / "store") and killed.poll() is None:
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    there = entries(many / "store")
    assert 0 < len(there) < 300
    finish(start(many, "killed", "store", f"--trainer.devices={devices}", "--trainer.strategy=ddp"))
    assert entries(many / "store") == entries(many / "whole") and len(entries(many / "whole")) == 300
    assert not list((many / "store").rglob("*.tmp"))


@pytest.mark.parametrize("step", [1, 2, 3, 4, 8, 13, 37, 38, 39, 40, 41, 42, 60])
def test_a_kill_at_any_write_loses_nothing(few, step):
    """Before a file is synced, renamed, removed: of parts, of what files were found to hold, of merged segments. The run goes on
    with 1, 2 or 3 processes."""
    killed = start(few, "killed", "store", KILL_AT=str(step))
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    devices = 1 + step % 3
    finish(start(few, "killed", "store", f"--trainer.devices={devices}", "--trainer.strategy=ddp"))
    assert entries(few / "store") == entries(few / "whole") and len(entries(few / "whole")) == 90


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """90 images and a store that holds them, made without a kill."""
    root = tmp_path_factory.mktemp("few")
    draw_images(root / "data" / "id", 90)
    finish(start(root, "whole", "whole"))
    return root


@pytest.fixture(autouse=True)
def no_store(request):
    yield
    if "few" in request.fixturenames:
        shutil.rmtree(request.getfixturevalue("few") / "store", ignore_errors=True)


def test_two_runs_on_one_store_agree(many):
    for process in [start(many, "first", "shared"), start(many, "second", "shared")]:
        finish(process)
    finish(start(many, "alone", "store"))
    assert entries(many / "shared") == entries(many / "store")
    tables = [(many / "runs" / name / "scores.parquet").read_bytes() for name in ("alone", "first", "second")]
    assert tables[0] == tables[1] == tables[2]
