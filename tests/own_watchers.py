"""Loggers and callbacks as somebody would write them, right and wrong ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class Counting(Callback):
    """Counts epochs over all beginnings of a run, and writes what it saw at the end."""

    def __init__(self, path: str, fail_in: int | None = None) -> None:
        self.path, self.fail_in, self.epochs, self.tested = path, fail_in, [], False

    def state_dict(self):
        return {"epochs": self.epochs}

    def load_state_dict(self, state):
        self.epochs = state["epochs"]

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == self.fail_in and not Path(f"{self.path}.failed").exists():
            Path(f"{self.path}.failed").touch()
            raise KeyboardInterrupt
        self.epochs.append(trainer.current_epoch)

    def on_test_end(self, trainer, module):
        if trainer.is_global_zero:
            Path(self.path).write_text(json.dumps({"epochs": self.epochs, "devices": trainer.world_size}))


class Unreadable(Callback):
    """Its state is an object that no checkpoint may hold."""

    def state_dict(self):
        return {"mean": np.random.default_rng(0)}


class Failing(Callback):
    def __init__(self, gain: float) -> None:
        raise ValueError(f"gain {gain} is too high")


class Kept(Logger):
    """Writes what it is given as JSON."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path, self.metrics, self.pictures, self.params = path, [], {}, {}

    name = version = property(lambda self: "kept")

    @rank_zero_only
    def log_metrics(self, metrics, step=None):
        self.metrics.append({**metrics, "step": step})

    @rank_zero_only
    def log_hyperparams(self, params):
        self.params = dict(params)

    @rank_zero_only
    def log_image(self, key, images):
        self.pictures[key] = [each.size for each in images]

    @rank_zero_only
    def finalize(self, status):
        told = {"metrics": self.metrics, "pictures": self.pictures, "params": self.params}
        Path(self.path).write_text(json.dumps(told, default=str))


class Abstract(Logger):
    pass


class Neither:
    pass


class Ending(Callback):
    """Ends the training after the second epoch."""

    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = trainer.current_epoch == 1
