"""Makes Lightning's Trainer from the keys of a config, and reports Lightning's objections in one line."""

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

subprocess_script._launch_process_observer = watch_ranks  # Lightning's own kills this process silently


def new_trainer(ours: dict[str, Any], keys: dict[str, Any], option: str = "trainer.") -> Trainer:
    """Makes a Trainer with our own settings, which the keys of a config (see `clip_ood.config.trainer_keys`) override.

    Raises: ConfigError for what this machine does not have: devices, an accelerator, an optional library.
    """
    try:
        theirs = {
            key: value for key, value in keys.items() if key not in OBJECTS
        }  # `ours` holds what was made of these
        trainer = Trainer(**(ours | theirs | {"plugins": [*ours.get("plugins", []), *_environment()]}))
    except (MisconfigurationException, TypeError, ValueError, RuntimeError, ImportError) as error:
        asked = ", ".join(f"{option}{key}={value}" for key, value in keys.items()) or "no keys"
        raise ConfigError(
            f"Lightning cannot make a Trainer of {asked}: {' '.join(str(error).split())} There are {torch.cuda.device_count()} CUDA "
            f"GPUs here. Change {option}devices or {option}accelerator (auto takes what there is)"
        ) from error
    trainer._signal_connector.register_signal_handlers = lambda: None  # `clip_ood.process.watch` hears signals
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy._timeout = timedelta(seconds=stalls.limit())
    if keys.get("sync_batchnorm") and trainer.strategy.root_device.type != "cuda":
        raise ConfigError(
            f"{option}sync_batchnorm needs CUDA GPUs, and this run is on {trainer.strategy.root_device}: leave it out"
        )
    return trainer


def predict(trainer: Trainer, module: LightningModule, data: LightningDataModule, *callbacks: Callback) -> None:
    """Runs a predict loop whose batches the callbacks see, and which returns nothing."""
    trainer.callbacks += callbacks
    try:
        trainer.predict(module, datamodule=data, return_predictions=False)
    finally:
        for each in callbacks:
            trainer.callbacks.remove(each)


def _environment() -> list[ClusterEnvironment]:
    """Returns what starts the processes, if Lightning is not left to find out.

    Under srun, Lightning would queue the job again by itself, which is left to the job's script. Without a launcher, Lightning
    would ask MPI, if mpi4py is installed; MPI starts when it is asked, and ends this process if it cannot start.
    """
    if SLURMEnvironment.detect():
        return [SLURMEnvironment(auto_requeue=False)]
    mpirun = any(name in os.environ for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"))
    return [] if mpirun or TorchElasticEnvironment.detect() or LSFEnvironment.detect() else [LightningEnvironment()]
