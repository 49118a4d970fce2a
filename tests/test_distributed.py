"""Two processes (gloo, CPU) against one: features to the byte, scores, tables; heads that go on after a kill.

Image sets don't divide by two: 67 ID images (an odd share for each part), OOD sets of 5 (one unreadable) and of 1.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_clip import checkpoint, results

import eval as evaluation
import train
from clip_ood.features import store
from clip_ood.features.entries import Entries

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1]
SMALL = [sys.executable, str(PROJECT / "tests" / "small_parts.py")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]
SIZES = {"id/cat": 30, "id/dog": 21, "id/fox": 16, "near": 4, "lone": 1}
ABOUT = ("detector", "setting", "ood", "n_id", "n_ood")
REST = ("accuracy", "knn_accuracy", "bank", "omitted", "pseudo_labels")
METRICS = ("auroc", "fpr95", "aupr_in", "aupr_out", "best_f1")
PROBE = "{linear_probe: {epochs: 60, batch_size: 11, lr: 0.01}}"  # 34 training images: steps of 11, 11, 11 and 1


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("two")
    generator = np.random.default_rng(0)
    for number, (place, count) in enumerate(SIZES.items()):
        folder = root / "data" / place
        folder.mkdir(parents=True)
        for index in range(count):
            pixels = generator.normal(100 + 8 * number, 60, (8, 8, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    (root / "data" / "near" / "2_broken.png").write_bytes(b"no image")
    return root


def config(root, name, method, store):
    path = root / f"{name}.yaml"
    path.write_text(
        f"""
data: {{root: {root}/data, id: id, ood: {{near: near, lone: lone}}, batch_size: 8, max_unreadable: 0.2}}
backbone: {{library: timm, model: test_vit}}
method: {method}
evaluation: {{figures: false, report: false, batch_size: 7}}
runs_root: {root}/runs
features_root: {root}/{store}
trainer: {{accelerator: cpu, devices: 1, enable_progress_bar: false}}
"""
    )
    return str(path)


def start(command, popen=subprocess.Popen):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    return popen(
        [str(part) for part in command], cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process):
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def alone(root):
    """A linear probe and a zero-shot table in this process, of one thread and with parts of 16 images."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "PART", 16)
        train.main(["--config", config(root, "probe", PROBE, "store")])
        evaluation.main(["--config", config(root, "zero_shot", "{zero_shot: {}}", "store")])
    yield {name: root / "runs" / name for name in ("probe", "zero_shot")}
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def together(root):
    """The same in two processes each, with stores of their own: a probe that Lightning starts, with parts of the usual
    size, and a zero-shot table that torchrun starts."""
    probe = config(root, "probe_of_two", PROBE, "store_of_two")
    zero_shot = config(root, "zero_shot_of_two", "{zero_shot: {}}", "store_of_torchrun")
    processes = [
        start([sys.executable, "train.py", "--config", probe, *TWO]),
        start([*TORCHRUN, SMALL[1], "eval", "--config", zero_shot, *TWO]),
    ]
    for process in processes:
        finish(process)
    return {name: root / "runs" / f"{name}_of_two" for name in ("probe", "zero_shot")}


def entries(store):
    """Every image of a store: identity -> the arrays of its entry."""
    found = {}
    for folder in store.glob("*/images"):
        for segment in Entries(folder).segments:
            for row, identity in enumerate(segment.identities.tolist()):
                found[tuple(identity)] = {name: array[row].tolist() for name, array in segment.arrays.items()}
    return found


def assert_same_table(run, other):
    first, second = results(run), results(other)
    assert [first[key] for key in REST] == [second[key] for key in REST]
    errors = [[each["value"] for each in of_run["joint"]["calibration_errors"]] for of_run in (first, second)]
    assert errors[0] == pytest.approx(errors[1], abs=1e-5)
    for row, twin in zip(first["rows"], second["rows"], strict=True):
        assert [row[key] for key in ABOUT] == [twin[key] for key in ABOUT]
        assert [row[metric] for metric in METRICS] == pytest.approx([twin[metric] for metric in METRICS], abs=1e-5)


def assert_same_scores(run, other):
    one, two = (pq.read_table(each / "scores.parquet") for each in (run, other))
    assert one.num_rows == 13 + 20 + 4 + 1 and one.column_names == two.column_names
    known = one.column_names[:6]
    assert one.select(known).equals(two.select(known))
    for detector in one.column_names[6:]:
        np.testing.assert_allclose(two[detector], one[detector], rtol=1e-5, atol=1e-5, err_msg=detector)


def last(run, tag):
    """The last value under a TensorBoard tag."""
    events = EventAccumulator(str(run))
    events.Reload()
    return events.Scalars(tag)[-1].value


def test_features_do_not_depend_on_processes(root, alone, together):
    one, torchrun, two = (entries(root / name) for name in ("store", "store_of_torchrun", "store_of_two"))
    assert one == torchrun == two and len(one) == 67 + 5 + 1
    assert sum(not entry["valid"] for entry in one.values()) == 1


@pytest.mark.parametrize("run", ["probe", "zero_shot"])
def test_scores_and_tables_do_not_depend_on_processes(run, alone, together):
    assert_same_scores(alone[run], together[run])
    assert_same_table(alone[run], together[run])


def test_a_head_does_not_depend_on_processes(alone, together):
    one, two = checkpoint(alone["probe"]), checkpoint(together["probe"])
    assert one["global_step"] == two["global_step"] == 60 * 4
    for name, tensor in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], tensor, rtol=1e-4, atol=1e-5)
    assert last(alone["probe"], "train/loss") == pytest.approx(last(together["probe"], "train/loss"), rel=1e-3)


def test_a_killed_run_goes_on_to_the_same_head(root, alone):
    name = config(root, "killed", PROBE, "store")
    process = start([*SMALL, "train", "--config", name], forked.Popen)
    written = root / "runs" / "killed" / "checkpoints" / "last.ckpt"
    while not written.is_file() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 0 < checkpoint(root / "runs" / "killed")["global_step"] < 60 * 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "PART", 16)
        train.main(["--config", name, "--resume"])
    one, resumed = checkpoint(alone["probe"]), checkpoint(root / "runs" / "killed")
    for key, tensor in one["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][key], tensor)
    assert_same_table(alone["probe"], root / "runs" / "killed")


def test_a_run_evaluated_again_gives_its_own_table(root, alone, monkeypatch):
    monkeypatch.setattr(store, "PART", 16)
    evaluation.main(["--run", str(alone["probe"])])
    again = root / "runs" / "probe-eval"
    assert results(again)["rows"] == results(alone["probe"])["rows"]
    assert_same_scores(alone["probe"], again)


def test_processes_without_a_share_wait_for_the_others(root):
    """One set is one part: there is nothing to extract for the second process."""
    name = config(root, "one_set", "{zero_shot: {}}", "store_of_one_set")
    finish(start([sys.executable, "eval.py", "--config", name, *TWO, "--data.ood={}"], forked.Popen))
    assert len(entries(root / "store_of_one_set")) == 67
    assert pq.read_table(root / "runs" / "one_set" / "scores.parquet").num_rows == 13 + 20
