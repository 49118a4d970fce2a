"""Fine-tuning a tiny random CLIP: what is trained, averaged, evaluated, kept and resumed, and which settings are refused."""

from __future__ import annotations

import copy
import random
from collections import Counter

import numpy as np
import pytest
import tiny_clip
import torch
from fine_tuning import FITTED, MOVING, assert_same_state, naive_scores, start, written_scores

import clip_ood.experiments.run
import eval as evaluation
from clip_ood.callbacks.averaging import MovingAverage, moving_average
from clip_ood.callbacks.ood_evaluation import OODEvaluation
from clip_ood.config.loading import load_config
from clip_ood.config.schema import FineTune as Settings
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.lightning_modules.fine_tune import FineTune

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fitted(root):
    losses, step = [], FineTune.training_step

    def watched(module, batch, batch_idx):
        logits = module._logits(batch.images)
        losses.append((module.current_epoch, batch.indices, (logits.argmax(1) == batch.labels).float().mean().item()))
        return step(module, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FineTune, "training_step", watched)
        run = start(root, "fitted", FITTED)
    return run, losses


@pytest.fixture(scope="module")
def moving(root):
    """A run with every augmentation, its validation tables by epoch."""
    seen, end = [], OODEvaluation.on_validation_end

    def watched(self, trainer, module):
        end(self, trainer, module)
        average = next(c for c in trainer.callbacks if isinstance(c, MovingAverage))._average_model.module
        seen.append((trainer.current_epoch, self.results, copy.deepcopy(average.state_dict())))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OODEvaluation, "on_validation_end", watched)
        run = start(root, "moving", MOVING, evaluation={"figures": False, "report": False, "every_n_epochs": 2})
    return run, seen


# Training and averaging


def test_it_overfits_32_images(fitted):
    run, seen = fitted
    epochs = range(FITTED["epochs"])
    assert all(len(torch.cat([rows for e, rows, _ in seen if e == epoch]).unique()) == 32 for epoch in epochs)
    assert [hits for epoch, _, hits in seen if epoch == epochs[-1]] == [1, 1]
    assert tiny_clip.results(run)["bank"] == {"images": 32, "per_class": None}


@pytest.mark.parametrize("run", ["fitted", "moving"])
def test_averaged_weights_are_evaluated_and_kept(root, run, request):
    run, _ = request.getfixturevalue(run)
    checkpoint = tiny_clip.checkpoint(run)
    found = written_scores(run)
    averaged, raw = (naive_scores(root, run, checkpoint[key]) for key in ("state_dict", "current_model_state"))
    assert len(found) == 2 * (14 + 9 + 7 + 1)
    assert found == pytest.approx(averaged, abs=1e-5)
    assert max(abs(found[key] - raw[key]) for key in found) > 1e-3


def test_without_averaging_raw_weights_are_evaluated_and_kept(root):
    run = start(root, "raw", MOVING | {"ema": None, "epochs": 2})
    checkpoint = tiny_clip.checkpoint(run)
    assert "current_model_state" not in checkpoint
    assert written_scores(run) == pytest.approx(naive_scores(root, run, checkpoint["state_dict"]), abs=1e-5)


def test_the_kept_weights_evaluated_again_give_the_same_table(root, moving):
    run, _ = moving
    evaluation.main(["--run", str(run)])
    assert tiny_clip.results(root / "runs" / "moving-eval")["rows"] == tiny_clip.results(run)["rows"]


def test_evaluation_while_training_sees_the_averaged_weights_and_every_image_once(root, moving):
    run, seen = moving
    assert [epoch for epoch, *_ in seen] == [1, 3]
    for _, results, averaged in seen:
        naive = naive_scores(root, run, averaged)
        rows = {name: len(scored.indices) for name, scored in results.scored.items()}
        assert rows == {"id_test": 14, "near": 9, "far": 7, "lone": 1}
        for detector in ("knn", "msp"):
            found = torch.cat([scored.scores[detector] for scored in results.scored.values()]).tolist()
            assert found == pytest.approx([score for key, score in naive.items() if key[0] == detector], abs=1e-5)
    assert_same_state(seen[-1][2], tiny_clip.checkpoint(run)["state_dict"])


def test_the_bank_is_a_draw_a_class_and_the_results_say_so(root):
    evaluation = {"figures": False, "report": False, "bank_per_class": 4}
    run = start(root, "drawn", MOVING | {"epochs": 1, "warmup_epochs": 0}, evaluation=evaluation)
    assert tiny_clip.results(run)["bank"] == {"images": 12, "per_class": 4}
    benchmark = load_benchmark(load_config(str(run / "config.yaml")))
    assert Counter(benchmark.labels(benchmark.parts["bank"])) == {0: 4, 1: 4, 2: 4}
    naive = naive_scores(root, run, tiny_clip.checkpoint(run)["state_dict"])
    assert written_scores(run) == pytest.approx(naive, abs=1e-5)


def test_the_average_forgets_after_its_share_of_the_run_and_each_step_draws_anew(root):
    history, rates, draws, decay = [], [], set(), Settings(**MOVING).averaging(4 * 4)

    def step(module, batch, batch_idx):
        history.append(module.head.weight.detach().clone())
        rates.append(module.optimizers().param_groups[-1]["lr"])
        loss = original(module, batch, batch_idx)
        draws.add((torch.initial_seed(), np.random.get_state()[1][0]))
        return loss

    original = FineTune.training_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FineTune, "training_step", step)
        run = start(root, "history", MOVING)
    assert len(history) == len(draws) == 16
    rise = 1e-6 + (0.02 - 1e-6) * np.arange(4) / 4
    fall = 1e-6 + (0.02 - 1e-6) * (1 + np.cos(np.pi * np.arange(12) / 12)) / 2
    assert rates == pytest.approx([rate * 8 / 256 for rate in (*rise, *fall)])  # for a batch of 256
    checkpoint = tiny_clip.checkpoint(run)
    after = [*history[1:], checkpoint["current_model_state"]["head.weight"]]  # weights after each step
    average = after[0]
    for weights in after[1:]:
        average = decay * average + (1 - decay) * weights
    torch.testing.assert_close(checkpoint["state_dict"]["head.weight"], average)


@pytest.mark.parametrize(
    "settings, steps, decay",
    [
        ({}, 1000, 1 - 1 / 100),
        ({"ema": 0.5}, 16, 1 - 1 / 8),
        ({"ema": 0.1}, 5, 0.0),
        ({"ema": None}, 1000, None),
        ({"ema": 0}, 1000, None),
        ({"ema_decay": 0.9}, 10, 0.9),
        ({"ema_decay": 0.999, "ema_longer_than_run": True}, 10, 0.999),
    ],
)
def test_the_decay_follows_the_length_of_the_run(settings, steps, decay):
    assert Settings(**settings).averaging(steps) == (decay if decay is None else pytest.approx(decay))


def test_whole_numbers_are_copied_and_equal_weights_stay_equal():
    update, indices = moving_average(0.9), torch.arange(50)
    averaged = [indices.clone()]
    update(averaged, [indices], torch.tensor(1))
    assert torch.equal(averaged[0], indices)
    frozen = torch.randn(100)
    averaged = [frozen.clone()]
    update(averaged, [frozen], torch.tensor(1))
    assert torch.equal(averaged[0], frozen)


# Going on after a kill


class Killed(Exception):
    """The process is gone."""


def killed_at(epoch, batch):
    original = FineTune.training_step

    def step(module, images, batch_idx):
        if (module.current_epoch, batch_idx) == (epoch, batch):
            raise Killed
        return original(module, images, batch_idx)

    return step


@pytest.mark.parametrize("epoch, batch", [(0, 2), (1, 0), (2, 3)])
def test_a_killed_run_goes_on_to_the_same_weights(root, moving, epoch, batch):
    name = f"killed_{epoch}"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(FineTune, "training_step", killed_at(epoch, batch))
        start(root, name, MOVING)
    kept = root / "runs" / name / "checkpoints" / "last.ckpt"
    assert kept.is_file() == (epoch > 0)
    assert epoch == 0 or tiny_clip.checkpoint(root / "runs" / name)["global_step"] == 4 * epoch
    torch.manual_seed(99), np.random.seed(99), random.seed(99)
    run = start(root, name, MOVING, "--resume")
    whole, resumed = tiny_clip.checkpoint(moving[0]), tiny_clip.checkpoint(run)
    assert resumed["global_step"] == whole["global_step"] == 16
    assert resumed["lr_schedulers"] == whole["lr_schedulers"]
    for key in ("state_dict", "current_model_state"):
        assert_same_state(whole[key], resumed[key], rtol=0, atol=1e-5)
    assert written_scores(run) == pytest.approx(written_scores(moving[0]), abs=1e-4)


def test_a_run_killed_in_its_last_evaluation_still_evaluates_averaged_weights(root, moving, monkeypatch):
    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(clip_ood.experiments.run, "write_results", killed)
        start(root, "almost", MOVING)
    run = start(root, "almost", MOVING, "--resume")
    assert tiny_clip.results(run)["rows"] == tiny_clip.results(moving[0])["rows"]


# Wrong settings


@pytest.mark.parametrize(
    "settings, keys, message",
    [
        ({"batch_size": 9}, {}, "batch_size = 9 gives .* 9 images; mixup and cutmix pair images: take 10"),
        ({"batch_size": 64}, {}, "batch_size = 64 is more than the 32 training images; lower it"),
        ({"batch_size": 8}, {"accumulate_grad_batches": 3}, "batch_size = 8 does not divide by .*; 6 or 9 does"),
        ({"ema_decay": 0.9999}, {}, r"averages over 10000 steps, and the run has 16: 100 % .* Leave ema_decay out"),
        ({"warmup_epochs": 4}, {}, "leaves nothing of 4 epochs"),
    ],
)
def test_wrong_steps_are_refused_before_an_image_is_read(root, settings, keys, message, monkeypatch):
    monkeypatch.setattr(clip_ood.experiments.run, "load_features", lambda *_: pytest.fail("images were read"))
    trainer = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False} | keys
    with pytest.raises(ValueError, match=message):
        start(root, "wrong", MOVING | settings, trainer=trainer)


def test_a_flat_folder_has_no_labels_to_train_on(root):
    data = {"root": f"{root}/data", "id": {"images": "near", "class_names": ["a", "b"]}}
    with pytest.raises(ValueError, match=r"method.finetune needs labels.*sort them into class folders"):
        start(root, "flat", MOVING, data=data)
