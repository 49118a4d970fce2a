"""Lightning's Trainer from the keys of a config, and what Lightning objects to in one line."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from configs.errors import ConfigError


def new_trainer(ours: dict[str, Any], keys: dict[str, Any], option: str = "trainer.") -> Trainer:
    """A Trainer with our own settings, and the keys of a config (see `configs.trainer_keys`) over them.

    Raises: ConfigError for what this machine has not: devices, an accelerator, an optional library.
    """
    try:
        trainer = Trainer(**(ours | keys))
    except (MisconfigurationException, TypeError, ValueError, RuntimeError, ImportError) as error:
        asked = ", ".join(f"{option}{key}={value}" for key, value in keys.items()) or "no keys"
        raise ConfigError(
            f"Lightning cannot make a Trainer of {asked}: {' '.join(str(error).split())} There are {torch.cuda.device_count()} CUDA "
            f"GPUs here. Change {option}devices or {option}accelerator (auto takes what there is)"
        ) from error
    if keys.get("sync_batchnorm") and trainer.strategy.root_device.type != "cuda":
        raise ConfigError(
            f"{option}sync_batchnorm needs CUDA GPUs, and this run is on {trainer.strategy.root_device}: leave it out"
        )
    return trainer
