"""Whole runs of a sweep: files, evaluating again, going on after a stop, two processes, seeds, errors."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

import forked
import pytest
import tiny_clip
import torch
from lightning.pytorch import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import eval as evaluation
import train
from clip_ood.errors import ConfigError
from clip_ood.lightning_modules.probe_sweep import ProbeSweep

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1]
SWEEP = {"lr": [1e-4, 0.1, 0.5], "weight_decay": [0, 1e-3], "min_confidence": [0.48, 0.3]}
PLP = {"plp": {"epochs": 6, "batch_size": 11, "sweep": SWEEP}}


def config(root, name, method=PLP, val=0.25, **keys):
    data = {"root": f"{root}/data", "id": "id", "ood": {"near": "near"}, "splits": {"val": val, "test": 0.3}}
    return tiny_clip.config(root, name, method, data=data, **keys)


@pytest.fixture(scope="module")
def swept(root):
    evaluating = {"figures": False, "every_n_epochs": 3}
    train.main(["--config", config(root, "swept", evaluation=evaluating)])
    return root / "runs" / "swept"


def assert_same_run(run, other, rel=0.0):
    one, two = tiny_clip.results(run), tiny_clip.results(other)
    assert one["pseudo_labels"] == two["pseudo_labels"]
    for mine, theirs in ((one["sweep"], two["sweep"]), (one["rows"], two["rows"])):
        for row, twin in zip(mine, theirs, strict=True):
            for key in row.keys() - {"intervals"}:
                exact = isinstance(row[key], str | bool | None)
                assert twin[key] == (row[key] if exact else pytest.approx(row[key], rel=rel, abs=rel)), key


def test_all_heads_are_written_and_one_is_chosen(swept):
    heads = tiny_clip.results(swept)["sweep"]
    with (swept / "sweep.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [{key: str(value) for key, value in head.items()} for head in heads] == table and len(table) == 12
    report = tiny_clip.results(swept)["pseudo_labels"]
    assert 0 < report["passed"] < report["images"]
    (chosen,) = [head for head in heads if head["chosen"]]
    assert chosen["val_accuracy"] == max(head["val_accuracy"] for head in heads)
    events = EventAccumulator(str(swept))
    events.Reload()
    assert (
        len(events.Scalars("val/loss")) == len(events.Scalars("val/accuracy")) == 7
    )  # of the head chosen so far, and at the test
    assert not [tag for tag in events.Tags()["scalars"] if tag.startswith("sweep/")]  # which may be thousands


def test_the_chosen_head_is_the_head_of_the_run(root, swept):
    state = tiny_clip.checkpoint(swept)["state_dict"]
    assert {name: tuple(weights.shape) for name, weights in state.items()} == {
        "head.linear.weight": (3, 32),
        "head.linear.bias": (3,),
        "head.mean": (32,),
        "head.std": (32,),
    }
    evaluation.main(["--run", str(swept)])
    assert_same_run(swept, root / "runs" / "swept-eval")
    method = {"finetune": {"epochs": 1, "warmup_epochs": 0, "batch_size": 8, "head": str(swept)}}
    train.main(["--config", config(root, "lp_ft", method)])
    assert tiny_clip.results(root / "runs" / "lp_ft")["rows"]


def test_the_settings_are_told(root, capsys):
    method = {"linear_probe": {"epochs": 4, "sweep": {"lr": [0.01, 0.1]}}}
    train.main(["--config", config(root, "told", method), "--seeds", "1", "2"])
    told = capsys.readouterr().out.replace("\n", " ")
    heads = tiny_clip.results(root / "runs" / "told")["sweep"]
    assert [head["seed"] for head in heads] == [1, 2]
    for head in heads:
        assert f"Chosen of the sweep on ID val: seed {head['seed']}, lr {head['lr']:g}, weight_decay " in told
        assert (root / "runs" / "told" / f"seed-{head['seed']}" / "sweep.csv").is_file()


@pytest.mark.parametrize("stopped", ["between epochs", "before the evaluation"])
def test_a_stopped_sweep_goes_on_to_the_same_heads(root, swept, stopped):
    path = config(root, stopped.replace(" ", "_"))

    def stop(self, *_, **__):
        if stopped == "before the evaluation" or self.current_epoch == 4:
            raise RuntimeError("stopped")
        ProbeSweep.__base__.on_train_epoch_start(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="stopped"):
        at = (Trainer, "test") if stopped == "before the evaluation" else (ProbeSweep, "on_train_epoch_start")
        patch.setattr(*at, stop)
        train.main(["--config", path])
    with pytest.raises(ValueError, match=r"sweep.lr: \[.*\] → \[0.2, 0.1, 0.5\]"):
        train.main(["--config", path, "--resume", "--method.plp.sweep.lr=[0.2, 0.1, 0.5]"])
    train.main(["--config", path, "--resume"])
    run = root / "runs" / stopped.replace(" ", "_")
    assert_same_run(swept, run)
    heads, resumed = (tiny_clip.checkpoint(each)["heads"] for each in (swept, run))
    assert all(torch.equal(resumed[name], weights) for name, weights in heads.items())


def test_two_processes_train_and_choose_as_one(root, swept):
    path = config(root, "two")
    command = [sys.executable, "train.py", "--config", path, "--trainer.devices=2", "--trainer.strategy=ddp"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = forked.run(command, cwd=PROJECT, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    assert_same_run(swept, root / "runs" / "two", rel=1e-4)
    for name, weights in tiny_clip.checkpoint(swept)["heads"].items():
        found = tiny_clip.checkpoint(root / "runs" / "two")["heads"][name]
        torch.testing.assert_close(found, weights, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("val", "option", "message"),
    [
        (
            0.0,
            "--name=empty",
            r"method\.plp\.sweep chooses among heads on ID val, and val is empty: raise data\.splits",
        ),
        (0.25, "--trainer.gradient_clip_val=1.0", r"would clip the gradients of all heads"),
    ],
)
def test_what_a_sweep_cannot_do_is_said_before_images_are_read(root, val, option, message, monkeypatch):
    monkeypatch.setattr("clip_ood.experiments.run.load_features", None)
    with pytest.raises(ConfigError, match=message):
        train.main(["--config", config(root, "wrong", val=val), option])
