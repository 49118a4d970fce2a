"""Checks the keys of Lightning's Trainer: which of them a run takes, with which values, and what to do instead of the others.

Lightning itself is not imported, which would take seconds. Keys that would cut a run short are refused, because its table would
look like that of a whole run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from clip_ood.backbones.checked_config import TRUTH, Kind, one_of
from clip_ood.config.class_paths import check_callbacks, check_logger
from clip_ood.config.section import MOST
from clip_ood.errors import ConfigError, nearest

ALL_IMAGES = "every image of every set counts; for a trial, take sets of fewer images (per_class)"
WHOLE_TRAINING = "training ends after method.<name>.epochs, set that instead"
EVERY = "set evaluation.every_n_epochs instead"
REFUSED = {
    "fast_dev_run": ALL_IMAGES,
    "overfit_batches": ALL_IMAGES,
    "limit_train_batches": ALL_IMAGES,
    "limit_test_batches": ALL_IMAGES,
    "limit_predict_batches": ALL_IMAGES,
    "barebones": "it would leave out checkpoints and logs; leave single things out by evaluation.figures=false and such",
    "max_epochs": "set method.<name>.epochs instead",
    "min_epochs": WHOLE_TRAINING,
    "max_steps": WHOLE_TRAINING,
    "min_steps": WHOLE_TRAINING,
    "max_time": f"{WHOLE_TRAINING}; a run that was stopped goes on with --resume",
    "limit_val_batches": EVERY,
    "val_check_interval": EVERY,
    "check_val_every_n_epoch": EVERY,
    "reload_dataloaders_every_n_epochs": "the images stay the same while a run trains",
    "enable_checkpointing": "the last step is kept",
    "plugins": "they are Python objects; set trainer.precision, trainer.strategy or trainer.num_nodes instead",
    "profiler": "its report would be written nowhere; take a profiler of processes, such as py-spy or python -m cProfile",
    "model_registry": "the run keeps its checkpoint in its folder",
    "default_root_dir": "set runs_root and name instead",
    "use_distributed_sampler": "every loader divides its rows among devices itself, unpadded",
}
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "32", "16", "bf16")
MOST_DEVICES = 4096  # in a machine
MOST_NODES = 10_000
ENVIRONMENT = "PL_TRAINER_"  # Lightning takes keys from such variables, which no config shows


def _whole(least: int, most: int = MOST) -> Kind:
    words = f"a whole number, {least} or more"
    if most < MOST:
        words += f" and at most {most:,}"
    return Kind(words, lambda value: type(value) is int and least <= value <= most)


def _are_devices(value: Any) -> bool:
    if isinstance(value, str) and re.fullmatch(r"[1-9]\d{0,6}", value):
        value = int(value)
    if isinstance(value, str) and re.fullmatch(r"\d{1,6}(,\d{1,6})*,?", value):
        value = [int(each) for each in value.strip(",").split(",")] if value != "0" else 0
    if isinstance(value, list):
        numbers = all(type(each) is int and each >= 0 for each in value)
        return numbers and 0 < len(value) == len(set(value))
    if isinstance(value, str):
        return value in ("auto", "-1")
    return type(value) is int and (1 <= value <= MOST_DEVICES or value == -1)


TAKEN = {
    "accelerator": one_of("auto", "cpu", "gpu", "cuda", "mps"),
    "devices": Kind("how many (2), which GPUs ([0, 1]), all of them (-1), or auto", _are_devices),
    "num_nodes": _whole(1, MOST_NODES),
    "strategy": Kind(f"one of {', '.join(STRATEGIES)}", lambda value: str(value).lower() in STRATEGIES),
    "precision": Kind(f"one of {', '.join(PRECISIONS[:3])}", lambda value: str(value) in PRECISIONS),
    "accumulate_grad_batches": _whole(1),
    "gradient_clip_val": Kind(
        "a number, 0 or more", lambda value: type(value) in (int, float) and 0 <= value < float("inf")
    ),
    "gradient_clip_algorithm": one_of("norm", "value"),
    "deterministic": Kind("true, false or warn", lambda value: isinstance(value, bool) or value == "warn"),
    "log_every_n_steps": _whole(0),
    "num_sanity_val_steps": _whole(-1),
    "benchmark": TRUTH,
    "inference_mode": TRUTH,
    "detect_anomaly": TRUTH,
    "sync_batchnorm": TRUTH,
    "enable_progress_bar": TRUTH,
    "enable_model_summary": TRUTH,
    "enable_autolog_hparams": TRUTH,
}
OBJECTS = {"logger": check_logger, "callbacks": check_callbacks}  # keys from whose value the run makes an object
NEEDED = ("accelerator", "devices", "num_nodes", "strategy", "accumulate_grad_batches")  # null means nothing for these
JUDGING = (
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "deterministic",
    "benchmark",
    "inference_mode",
    "enable_progress_bar",
)  # keys that detect.py takes


def check_trainer(keys: Mapping[str, Any], option: str = "trainer.") -> None:
    """Raises ConfigError for the first key, or value of a key, that a run cannot have, and says what to do instead.

    `option` comes before a key where it is given. Lightning's variables in the environment count as unknown keys.
    """
    if unseen := sorted(name for name in os.environ if name.startswith(ENVIRONMENT) and os.environ[name]):
        key = unseen[0].removeprefix(ENVIRONMENT).lower()
        raise ConfigError(
            f"The environment sets {unseen[0]}, which changes Lightning's Trainer and would stand in no config: unset it, and give "
            f"--trainer.{key}=VALUE if you mean it"
        )
    for key, value in keys.items():
        if key in REFUSED:
            raise ConfigError(f"{option}{key} is not for configs: {REFUSED[key]}.")
        if key in OBJECTS:
            if value is not None:
                OBJECTS[key](value, f"{option}{key}")
            continue
        if key not in TAKEN:
            near = nearest(key, TAKEN | OBJECTS)
            raise ConfigError(
                f"Lightning's Trainer has no key {key!r} ({option}{key}), or none that a run takes.{near}"
            )
        if value is None and key in NEEDED:
            raise ConfigError(f"{option}{key} has no value, and must be {TAKEN[key].words}; or leave the key out")
        if value is not None and not TAKEN[key].fits(value):
            raise ConfigError(_wrong(key, value, option))
    if keys.get("accelerator") == "cpu" and not _is_count(keys.get("devices", "auto")):
        raise ConfigError(
            f"{option}devices: {_shown(keys['devices'])} asks for GPUs, and {option}accelerator is cpu: give the number of processes, "
            "as 2, or auto for one"
        )


def check_judging(keys: Mapping[str, Any]) -> None:
    """Does what `check_trainer` does for detect.py, which trains nothing."""
    option = "--trainer."
    for key in keys:
        if key in TAKEN.keys() | OBJECTS.keys() | REFUSED.keys() and key not in JUDGING and key != "precision":
            raise ConfigError(
                f"{option}{key} is not for detect.py, where all images are judged and nothing is trained: it takes "
                f"{', '.join(option + name for name in JUDGING[:4])}"
            )
    if str(keys.get("precision", "32")) not in ("32", "32-true"):
        raise ConfigError(f"{option}precision is not for detect.py: images are judged at the encoder's own precision")
    check_trainer(keys, option)


def _is_count(devices: Any) -> bool:
    return devices == "auto" or (not isinstance(devices, list) and re.fullmatch(r"[1-9]\d*", str(devices)) is not None)


def _wrong(key: str, value: Any, option: str) -> str:
    """Returns what is said of a value that a key cannot have."""
    said = f"{option}{key}: {_shown(value)}"
    if key == "precision" and re.fullmatch(r"64|.*-true|transformer-engine.*", str(value)):
        return (
            f"{said} would change stored features as well. Set backbone.precision for the encoder, and here bf16-mixed, 16-mixed or "
            "32-true for the head."
        )
    if key == "strategy" and (meant := _strategy(str(value).lower(), option)):
        return f"{said} {meant}"
    words = TAKEN[key].words
    return f"{said} must be {words}.{nearest(str(value), words.removeprefix('one of ').split(', '))}"


def _strategy(name: str, option: str) -> str | None:
    """Returns what to use instead of a strategy that Lightning or its earlier versions have."""
    if re.match(r"ddp_?(spawn|fork|notebook)", name):
        return "keeps results in copies of this process, where they are lost: take ddp, a process of its own for each device"
    if re.match(r"fsdp|deepspeed|model_parallel|ddp_sharded|bagua|colossal", name):
        return (
            "divides the weights of a model, and here every device holds them all: take ddp. If memory is short: "
            "method.finetune.gradient_checkpointing=true, backbone.precision=bf16 or a smaller batch_size"
        )
    if re.match(r"dp$|ddp2|ddp_cpu|horovod|hivemind", name):
        return "is none of Lightning's any more: take ddp"
    if name in ("single_device", "single_tpu", "single_xla"):
        return f"is what auto comes to with {option}devices=1: take that"
    return "is for TPUs, which are not supported: take auto or ddp" if re.match(r"xla|tpu|hpu", name) else None


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) < 60 else f"{text[:60]}…"
