"""Training that a callback has ended early stays ended when the run goes on."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

KEY = "stopped_early"


class StoppedEarly(Callback):
    """Keeps `trainer.should_stop` in checkpoints, which Lightning does not, and gives it back to a Trainer that loads one."""

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[KEY] = trainer.should_stop

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        trainer.should_stop = checkpoint.get(KEY, False)
