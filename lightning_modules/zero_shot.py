"""The encoder as it is: stored features pass through to the detectors."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from torch import Tensor

from clip_ood.outputs import Outputs, Reference


class ZeroShot(LightningModule):
    """No training; classes, if any, are the text embeddings (C, E) of their names."""

    def __init__(
        self,
        class_names: tuple[str, ...] | None = None,
        text_embeddings: Tensor | None = None,
        logit_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.class_names, self.logit_scale = class_names, logit_scale
        self.register_buffer("text_embeddings", text_embeddings, persistent=False)

    def reference(self) -> Reference:
        """What detectors may know beside the rows."""
        return Reference(self.class_names, self.text_embeddings, self.logit_scale)

    def evaluation_step(self, batch: Outputs, dataloader_idx: int) -> Outputs:
        """A batch of the bank (loader 0) or of a scored set, as the detectors see it."""
        return batch

    def test_step(self, batch: Outputs, batch_idx: int, dataloader_idx: int = 0) -> Outputs:
        return self.evaluation_step(batch, dataloader_idx)

    def validation_step(self, batch: Outputs, batch_idx: int, dataloader_idx: int = 0) -> Outputs:
        return self.evaluation_step(batch, dataloader_idx)
