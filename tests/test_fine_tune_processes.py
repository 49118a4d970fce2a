"""Fine-tuning in two processes gives what one process gives."""

from __future__ import annotations

import os
import sys

import forked
import pytest
import tiny_clip
from fine_tuning import FITTED, STILL, assert_same_state, start, written_scores
from tiny_clip import PROJECT

import eval as evaluation

pytestmark = pytest.mark.slow


def start_two(root, name, settings, **keys):
    """The same as `start`, in two processes."""
    path = tiny_clip.config(root, name, {"finetune": settings}, **keys)
    done = forked.run(
        [sys.executable, "train.py", "--config", path, "--trainer.devices=2", "--trainer.strategy=ddp"],
        cwd=PROJECT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return root / "runs" / name


def test_two_processes_train_the_same_weights_and_give_the_same_table(root):
    settings = FITTED | {"epochs": 3, "ema": 0.4}
    one = start(root, "one", settings)
    two = start_two(root, "two", settings, evaluation={"figures": False, "report": False, "every_n_epochs": 2})
    first, second = tiny_clip.checkpoint(one), tiny_clip.checkpoint(two)
    assert first["global_step"] == second["global_step"] == 6
    for key in ("state_dict", "current_model_state"):
        assert_same_state(first[key], second[key], rtol=1e-3, atol=1e-4)
    assert written_scores(two) == pytest.approx(written_scores(one), abs=1e-3)


def test_two_processes_evaluate_with_the_batch_norm_statistics_that_are_kept(root):
    """Each process has met other images, so that its own statistics differ."""
    settings = STILL | {"epochs": 1, "warmup_epochs": 0, "batch_size": 8, "ema": 0.5}
    run = start_two(root, "batch_norm", settings, backbone={"library": "timm", "model": "test_resnet"})
    evaluation.main(["--run", str(run), "--trainer.devices=1", "--trainer.strategy=auto"])
    assert written_scores(run) == pytest.approx(written_scores(root / "runs" / "batch_norm-eval"), abs=1e-5)
