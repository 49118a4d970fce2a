"""Callbacks under trainer.callbacks: they take part, their state goes on with the run, and what is wrong with one is a line."""

from __future__ import annotations

import json

import pytest
import tiny_clip
from lightning.pytorch import Trainer

import eval as evaluation
import train
from clip_ood.config.loading import load_config
from clip_ood.errors import ConfigError, UserError

pytestmark = pytest.mark.slow

PROBE = {"linear_probe": {"epochs": 4, "batch_size": 16, "lr": 0.01}}
FINETUNE = {"finetune": {"epochs": 3, "warmup_epochs": 1, "batch_size": 4, "ema": 0.5}}


def trained(root, name, callbacks, *options, method=PROBE, val=0.2, every=0, **more):
    data = {"root": f"{root}/data", "id": "id", "ood": {"near": "near"}, "splits": {"val": val, "test": 0.3}} | more
    trainer = {
        "accelerator": "cpu",
        "devices": 1,
        "enable_progress_bar": False,
        "logger": "csv",
        "callbacks": callbacks,
    }
    evaluated = {"figures": False, "report": False, "save_detector": False, "every_n_epochs": every}
    keys = {"data": data, "trainer": trainer, "evaluation": evaluated, "detectors": ["knn", "msp"]}
    train.main(["--config", tiny_clip.config(root, name, method, **keys), *options])
    return root / "runs" / name


def counting(path, **more):
    return {"class_path": "own_watchers.Counting", "init_args": {"path": str(path)} | more}


@pytest.mark.parametrize("method", ["probe", "finetune"])
def test_its_state_goes_on_with_the_run(root, tmp_path, method):
    seen, keys = tmp_path / "seen.json", {"method": PROBE if method == "probe" else FINETUNE}
    failing = [counting(seen, fail_in=2)]
    with pytest.raises(KeyboardInterrupt):
        trained(root, f"resumed_{method}", failing, **keys)
    run = trained(root, f"resumed_{method}", failing, "--resume", **keys)
    epochs = 4 if method == "probe" else 3
    assert json.loads(seen.read_text()) == {"epochs": list(range(epochs)), "devices": 1}
    assert load_config(str(run / "config.yaml")).trainer["callbacks"] == failing
    alone = trained(root, f"alone_{method}", [], **keys)
    assert tiny_clip.results(alone)["rows"] == tiny_clip.results(run)["rows"]


def test_it_takes_part_in_an_evaluation(root, tmp_path):
    run = trained(root, "tested", [])
    entry = f"{{class_path: own_watchers.Counting, init_args: {{path: {tmp_path}/seen.json}}}}"
    evaluation.main(["--run", str(run), f"--trainer.callbacks=[{entry}]"])
    assert json.loads((tmp_path / "seen.json").read_text()) == {"epochs": [], "devices": 1}


def test_lightnings_own_steer_by_id_val(root):
    stop = {"class_path": "lightning.pytorch.callbacks.EarlyStopping"}
    stop["init_args"] = {"monitor": "val/accuracy", "mode": "max", "patience": 1, "min_delta": 1.0}
    best = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}
    best["init_args"] = {"monitor": "val/loss", "filename": "best"}
    run = trained(root, "steered", [stop, best])
    assert tiny_clip.checkpoint(run)["epoch"] == 1  # 0 is the best so far, 1 is no better
    assert (run / "checkpoints" / "best.ckpt").is_file()
    evaluation.main(["--run", str(run)])
    rows = [tiny_clip.results(root / "runs" / name)["rows"] for name in ("steered", "steered-eval")]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("asked", [[], [{"class_path": "own_watchers.Ending"}]])
def test_training_that_was_stopped_early_is_not_gone_on_with(root, asked):
    stop = {"class_path": "lightning.pytorch.callbacks.EarlyStopping"}
    stop["init_args"] = {"monitor": "val/accuracy", "mode": "max", "patience": 1, "min_delta": 1.0}
    name, callbacks = f"stopped_{len(asked)}", asked or [stop]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "test", _interrupted)
        trained(root, name, callbacks)
    assert tiny_clip.checkpoint(root / "runs" / name)["epoch"] == 1
    weights = tiny_clip.checkpoint(root / "runs" / name)["state_dict"]["head.linear.weight"]
    run = trained(root, name, callbacks, "--resume")
    assert tiny_clip.checkpoint(run)["epoch"] == 1 and tiny_clip.results(run)["rows"]
    assert tiny_clip.checkpoint(run)["state_dict"]["head.linear.weight"].equal(weights)


def _interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("every", "told"), [(2, "it is measured every 2 epochs"), (0, "it is measured at the end alone")]
)
def test_what_is_not_measured_every_epoch_steers_nothing(root, every, told):
    entry = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "ood_val/knn/auroc"}}
    with pytest.raises(UserError, match=rf"{told}: set evaluation\.every_n_epochs=1, or monitor val/accuracy"):
        trained(root, f"old_{every}", [entry], every=every, ood_val={"folder": "far"})
    trained(root, f"new_{every}", [entry], every=1, ood_val={"folder": "far"})


def test_a_callback_stays_when_a_run_goes_on(root, tmp_path):
    failing = [counting(tmp_path / "seen", fail_in=1)]
    with pytest.raises(KeyboardInterrupt):
        trained(root, "left", failing)
    with pytest.raises(ConfigError, match=r"begun with other settings \(trainer\.callbacks: "):
        trained(root, "left", [], "--resume")


def test_a_state_that_no_checkpoint_may_hold_is_told_at_the_first(root):
    with pytest.raises(
        UserError, match=r"^trainer\.callbacks: the state_dict\(\) of Unreadable holds more than tensors"
    ):
        trained(root, "unreadable", [{"class_path": "own_watchers.Unreadable"}])
    assert not (root / "runs" / "unreadable" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"class_path": "nowhere.Mine"}, r"no module 'nowhere' on the Python path"),
        ({"class_path": "own_watchers.Absent"}, r"own_watchers has no class 'Absent'"),
        (
            {"class_path": "own_watchers.Kept", "init_args": {"path": "a"}},
            r"expected a subclass of .*Callback, got <class",
        ),
        (
            {"class_path": "own_watchers.Counting"},
            r"init_args do not fit: missing a required argument: 'path'; it takes path, fail_in",
        ),
        ({"class_path": "own_watchers.Counting", "init_args": {"pth": 1}}, r"Did you mean path\?"),
        ({"class_path": "own_watchers.Failing", "init_args": {"gain": 3}}, r"ValueError: gain 3 is too high"),
    ],
)
def test_a_wrong_class_is_one_line_before_any_image_is_read(root, entry, message, monkeypatch):
    monkeypatch.setattr("clip_ood.experiments.run.load_features", lambda *_: pytest.fail("images were read"))
    with pytest.raises(UserError, match=rf"^trainer\.callbacks: .*{message}") as error:
        trained(root, "wrong", [entry])
    assert "\n" not in str(error.value)
    assert not (root / "runs" / "wrong" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{class_path: a.B}", r"must be a list of {class_path: my_module\.Mine"),
        ("[a.B]", r"must be a list of {class_path: my_module\.Mine"),
        ("[{class_path: a.B, init_arg: {}}]", r"has no key 'init_arg'.*Did you mean init_args"),
    ],
)
def test_what_is_no_list_of_classes_is_refused_at_once(value, message):
    with pytest.raises(ConfigError, match=rf"^trainer\.callbacks: .*{message}"):
        load_config("own_images.yaml", [f"--trainer.callbacks={value}"])


def test_what_an_attack_moves_images_with_logs_nothing_and_has_none(root, tmp_path, monkeypatch):
    """Its runs have both; the Trainer that moves the images keeps no folder."""
    from clip_ood.experiments.attack.conduct import _trainer

    monkeypatch.chdir(tmp_path)
    keys = {"accelerator": "cpu", "devices": 1, "logger": "csv", "callbacks": [counting(tmp_path / "seen")]}
    trainer = _trainer(load_config(tiny_clip.config(root, "attacked", {"zero_shot": {}}, trainer=keys)))
    assert trainer.loggers == [] and "Counting" not in [type(each).__name__ for each in trainer.callbacks]
