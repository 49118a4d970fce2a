"""Writes the parts of a predict loop, each once it is whole, so that a killed run loses only the part that it had begun."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class PartWriter(Callback):
    """Collects the batches of a part and hands them on once the part is whole.

    A batch says whether it is the `last` of its part; parts come one after the other. `written` counts the parts that this
    process has finished.
    """

    def __init__(self) -> None:
        self.written = 0
        self._found: list[tuple[Any, Any]] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._found.append((batch, self.see(module, batch, outputs)))
        if batch.last:
            self.write(module, self._found)
            self._found = []
            self.written += 1

    def see(self, module: LightningModule, batch: Any, outputs: Any) -> Any:
        """Returns what is kept of a batch's outputs until its part is written."""
        return outputs

    @abstractmethod
    def write(self, module: LightningModule, found: list[tuple[Any, Any]]) -> None:
        """Writes a part, whole or not at all: its batches, each with what was kept of its outputs."""
