"""The Trainer's keys: what would cut a run short is refused, and whatever Lightning would refuse is one line with the way out."""

from __future__ import annotations

from inspect import signature

import pytest
import tiny_clip
import torch
from lightning.pytorch import Trainer

import attack
import detect
import eval as evaluation
import train
from clip_ood.config.loading import load_config
from clip_ood.config.trainer_keys import JUDGING, NEEDED, OBJECTS, REFUSED, TAKEN, check_judging, check_trainer
from clip_ood.errors import ConfigError
from clip_ood.experiments.trainer import new_trainer

SHORT = ["fast_dev_run", "overfit_batches", *(f"limit_{part}_batches" for part in ("train", "val", "test", "predict"))]
SHORT += ["max_steps", "min_steps", "max_epochs", "min_epochs", "max_time", "barebones"]
LESS_EVALUATED = [
    "val_check_interval",
    "check_val_every_n_epoch",
    "enable_checkpointing",
    "reload_dataloaders_every_n_epochs",
]
ODD = [
    None,
    True,
    False,
    -1,
    0,
    1,
    3,
    -2,
    0.5,
    -0.5,
    2.0,
    float("nan"),
    float("inf"),
    "",
    "1",
    "0",
    "two",
    "warn",
    "auto",
    "cpu",
    "norm",
]
ODD += [
    "AUTO",
    "32-true",
    "16",
    "64-true",
    "fp8",
    [],
    [0],
    [0, 0],
    [True],
    ["0"],
    [-1],
    {},
    {"a": 1},
    "0,1",
    "1,1",
    ",",
    "0x1",
    "1:30",
]


def test_every_key_of_lightnings_is_taken_or_refused():
    assert {*TAKEN, *OBJECTS, *REFUSED} == set(signature(Trainer.__init__).parameters) - {"self"}
    assert not TAKEN.keys() & REFUSED.keys() and set(JUDGING) | set(NEEDED) <= TAKEN.keys()


@pytest.mark.parametrize("key", TAKEN)
def test_what_lightning_refuses_was_refused_before(key):
    """Of odd values, each is refused here, or makes a Trainer on a machine that has what it names."""
    taken = 0
    for value in ODD:
        keys = {"accelerator": "cpu", "devices": 1} | {key: value}
        try:
            check_trainer(keys)
        except ConfigError as error:
            assert f"trainer.{key}" in str(error) and "\n" not in str(error)
            continue
        if key == "sync_batchnorm" and value:
            continue  # for GPUs
        Trainer(**({"logger": False, "enable_checkpointing": False} | keys))
        taken += 1
    torch.use_deterministic_algorithms(False)
    assert 0 < taken < len(ODD) / 2


@pytest.mark.parametrize("key", [*SHORT, *LESS_EVALUATED])
@pytest.mark.parametrize("value", ["1", "true", "0.1", "null"])
def test_what_would_cut_a_run_short_is_refused_with_the_way_out(key, value):
    with pytest.raises(
        ConfigError, match=rf"trainer\.{key} is not for configs: .*(method|evaluation|image|kept|leave)"
    ):
        load_config("own_images.yaml", [f"--trainer.{key}={value}"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("devices=two", r"trainer\.devices: two must be how many \(2\), which GPUs"),
        ("devices=null", r"trainer\.devices has no value"),
        ("devices=0", "devices: 0 must be"),
        ("devices=[0, 0]", r"devices: \[0, 0\] must be"),
        ("accelerator=GPU", r"accelerator: GPU must be one of auto, cpu, gpu"),
        ("accelerator=tpu", "accelerator: tpu must be one of"),
        ("num_nodes=0", "num_nodes: 0 must be a whole number, 1 or more"),
        ("strategy=ddp_spawn", "ddp_spawn keeps results in copies of this process, .*take ddp"),
        ("strategy=ddp_notebook_find_unused_parameters_true", "take ddp"),
        ("strategy=ddp_fork", "take ddp"),
        ("strategy=fsdp_cpu_offload", "every device holds them all: take ddp.*gradient_checkpointing"),
        ("strategy=deepspeed_stage_3", "take ddp"),
        ("strategy=dp", "none of Lightning's any more: take ddp"),
        ("strategy=single_device", r"trainer\.devices=1"),
        ("strategy=xla", "TPUs, which are not supported"),
        ("strategy=dddp", "Did you mean ddp"),
        ("precision=64", r"would change stored features as well\. Set backbone\.precision"),
        ("precision=16-true", "would change stored features"),
        ("precision=transformer-engine", "would change stored features"),
        ("precision=bf16_mixed", "must be one of 32-true, 16-mixed, bf16-mixed.* Did you mean bf16-mixed"),
        ("accumulate_grad_batches=0", "must be a whole number, 1 or more"),
        ("accumulate_grad_batches={4: 2}", "must be a whole number, 1 or more"),
        ("gradient_clip_val=-1", "must be a number, 0 or more"),
        ("gradient_clip_algorithm=max", "must be one of norm, value"),
        ("deterministic=warning", "must be true, false or warn"),
        ("enable_progress_bar=maybe", "must be true or false"),
        ("plugins=slurm", "they are Python objects"),
        ("profiler=pytorch", "its report would be written nowhere"),
    ],
)
def test_a_value_is_answered_with_what_is_meant(value, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_config("own_images.yaml", [f"--trainer.{value}"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("devices", ["-1", "[0, 1]", "'0,1'"])
def test_gpus_are_not_a_number_of_cpu_processes(devices):
    with pytest.raises(
        ConfigError, match=r"asks for GPUs, and trainer\.accelerator is cpu: give the number of processes"
    ):
        load_config("own_images.yaml", ["--trainer.accelerator=cpu", f"--trainer.devices={devices}"])


@pytest.mark.parametrize(
    "value",
    ["devices=2", "devices='2'", "devices=auto", "devices=-1", "devices=[0, 3]", "strategy=DDP", "precision=bf16", "precision=32"],
)  # fmt: skip
def test_what_lightning_takes_is_taken(value):
    load_config("own_images.yaml", [f"--trainer.{value}"])


@pytest.mark.parametrize("name", ["FAST_DEV_RUN", "LIMIT_TEST_BATCHES", "MAX_STEPS", "DEVICES"])
def test_keys_in_the_environment_are_refused(name, monkeypatch):
    monkeypatch.setenv(f"PL_TRAINER_{name}", "1")
    with pytest.raises(ConfigError, match=rf"PL_TRAINER_{name}.*unset it, and give --trainer\.{name.lower()}=VALUE"):
        load_config("own_images.yaml")
    with pytest.raises(ConfigError, match=f"PL_TRAINER_{name}"):
        detect.main(["--run", "anywhere", "."])


@pytest.mark.parametrize("key", sorted({*TAKEN, *OBJECTS, *REFUSED} - {*JUDGING, "precision"}))
def test_what_says_nothing_of_judging_is_refused_by_detect(key):
    with pytest.raises(ConfigError, match=rf"--trainer\.{key} is not for detect\.py, where all images are judged"):
        check_judging({key: 1})


@pytest.mark.parametrize("keys", [{"devices": 0}, {"strategy": "ddp_spawn"}, {"accelerator": "cpu", "devices": -1}])
def test_values_are_checked_by_detect_as_well(keys):
    with pytest.raises(ConfigError, match=r"--trainer\.\w+: "):
        check_judging(keys)


# On a machine


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.mark.parametrize(
    "keys", [{"devices": -1}, {"devices": [0, 1]}, {"devices": "0,1"}, {"accelerator": "gpu"}, {"sync_batchnorm": True}]
)
def test_devices_that_are_not_there_are_one_line(keys, no_gpu, root):
    config = tiny_clip.config(root, "absent", {"linear_probe": {"epochs": 1}}, trainer=keys)
    for run in (lambda: train.main(["--config", config]), lambda: new_trainer({}, keys)):
        with pytest.raises(ConfigError, match=r"trainer\.") as error:
            run()
        assert "\n" not in str(error.value)
    assert not (root / "runs" / "absent" / "config.yaml").exists()


def test_nothing_of_a_trial_is_left(root):
    config = tiny_clip.config(root, "trial", {"zero_shot": {}})
    for option in ("fast_dev_run=true", "limit_predict_batches=1", "limit_test_batches=0.5"):
        with pytest.raises(ConfigError, match="not for configs"):
            evaluation.main(["--config", config, f"--trainer.{option}"])
        with pytest.raises(ConfigError, match="not for configs"):
            attack.main(["--config", "adversarial_demo.yaml", f"--trainer.{option}"])
    assert not (root / "runs" / "trial").exists()
