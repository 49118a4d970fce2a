"""Lightning's Trainer from the keys of a config, and what Lightning objects to in one line."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    LSFEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from clip_ood.config.trainer_keys import OBJECTS
from clip_ood.errors import ConfigError
from clip_ood.process import stalls
from clip_ood.process.watch import watch_ranks

subprocess_script._launch_process_observer = watch_ranks  # Lightning's own kills this process without a word


def new_trainer(ours: dict[str, Any], keys: dict[str, Any], option: str = "trainer.") -> Trainer:
    """A Trainer with our own settings, and the keys of a config (see `clip_ood.config.trainer_keys`) over them.

    Raises: ConfigError for what this machine has not: devices, an accelerator, an optional library.
    """
    try:
        theirs = {
            key: value for key, value in keys.items() if key not in OBJECTS
        }  # of which `ours` holds what was made
        trainer = Trainer(**(ours | theirs | {"plugins": [*ours.get("plugins", []), *_environment()]}))
    except (MisconfigurationException, TypeError, ValueError, RuntimeError, ImportError) as error:
        asked = ", ".join(f"{option}{key}={value}" for key, value in keys.items()) or "no keys"
        raise ConfigError(
            f"Lightning cannot make a Trainer of {asked}: {' '.join(str(error).split())} There are {torch.cuda.device_count()} CUDA "
            f"GPUs here. Change {option}devices or {option}accelerator (auto takes what there is)"
        ) from error
    trainer._signal_connector.register_signal_handlers = lambda: None  # signals are heard by `clip_ood.process.watch`
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy._timeout = timedelta(seconds=stalls.limit())
    if keys.get("sync_batchnorm") and trainer.strategy.root_device.type != "cuda":
        raise ConfigError(
            f"{option}sync_batchnorm needs CUDA GPUs, and this run is on {trainer.strategy.root_device}: leave it out"
        )
    return trainer


def predict(trainer: Trainer, module: LightningModule, data: LightningDataModule, writer: Callback) -> None:
    """A predict loop whose batches `writer` sees, and which returns nothing."""
    trainer.callbacks.append(writer)
    try:
        trainer.predict(module, datamodule=data, return_predictions=False)
    finally:
        trainer.callbacks.remove(writer)


def _environment() -> list[ClusterEnvironment]:
    """Who starts the processes, where Lightning is not left to find out.

    Under srun, Lightning would queue the job again by itself, which is left to the job's script. Where no launcher is, Lightning would
    ask MPI, if mpi4py is installed; MPI starts when it is asked, and ends this process where it cannot.
    """
    if SLURMEnvironment.detect():
        return [SLURMEnvironment(auto_requeue=False)]
    mpirun = any(name in os.environ for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"))
    return [] if mpirun or TorchElasticEnvironment.detect() or LSFEnvironment.detect() else [LightningEnvironment()]
