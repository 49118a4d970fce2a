"""Uses the encoder as it is: stored features pass through to the detectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from clip_ood.backbones.backbone import Backbone
from clip_ood.data.benchmark import BANK
from clip_ood.errors import UserError
from clip_ood.outputs import NegativeLabels, Outputs, Reference


class ZeroShot(LightningModule):
    """Trains nothing.

    Classes, if any, are the text embeddings (C, E) of their names; negatives are the negative labels by detector.
    `load_from_checkpoint` makes a module again, except for what checkpoints do not keep and must be given again: `negatives`, and
    the `backbone` of fine-tuning. `text_tower` makes the encoder of texts, and `class_images` (C, E) are the mean embeddings of training
    images, and `projection` is that of the encoder into the joint space; each may be set later, for what asks for it.
    """

    text_tower: Callable[[], Backbone] | None = None
    class_images: Tensor | None = None
    projection: Tensor | None = None

    def __init__(
        self,
        class_names: tuple[str, ...] | None = None,
        text_embeddings: Tensor | None = None,
        logit_scale: float | None = None,
        negatives: dict[str, NegativeLabels] | None = None,
        logit_bias: float | None = None,
    ) -> None:
        super().__init__()
        kept = {
            "class_names": class_names and list(class_names),
            "text_embeddings": text_embeddings,
            "logit_scale": logit_scale,
            "logit_bias": logit_bias,
        }
        self.save_hyperparameters(kept, logger=False)
        class_names = class_names and tuple(class_names)
        self.class_names, self.negatives = class_names, negatives or {}
        self.logit_scale, self.logit_bias = logit_scale, logit_bias
        self.register_buffer("text_embeddings", text_embeddings, persistent=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["class_names"] = list(self.class_names or ())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_classes(checkpoint, self.class_names, "the checkpoint")

    def reference(self) -> Reference:
        """Returns what detectors may know besides the rows."""
        return Reference(
            self.class_names,
            self.text_embeddings,
            self.logit_scale,
            logit_bias=self.logit_bias,
            class_images=self.class_images,
            projection=self.projection,
            text_tower=self.text_tower,
            **self.negatives,
        )

    def outputs(self, batch: Outputs) -> Outputs:
        """Returns a batch of a scored set as the detectors see it."""
        return batch

    def bank_outputs(self, batch: Outputs) -> Outputs:
        """Returns a batch of the bank as the detectors see it, with the labels by which they take class statistics."""
        return self.outputs(batch)

    def test_step(self, batch: Outputs, batch_idx: int, dataloader_idx: int | None = None) -> Outputs:
        """Returns the outputs of a batch. Lightning names no loader if there is only one, which is ID val."""
        return self.bank_outputs(batch) if dataloader_idx == BANK else self.outputs(batch)

    def validation_step(self, batch: Outputs, batch_idx: int, dataloader_idx: int | None = None) -> Outputs:
        return self.test_step(batch, batch_idx, dataloader_idx)


def check_classes(checkpoint: dict[str, Any], class_names: tuple[str, ...] | None, what: str) -> None:
    """Raises ValueError if the head of a checkpoint was trained on other classes, or in another order."""
    theirs, ours = checkpoint.get("class_names", []), list(class_names or ())
    if theirs != ours:
        differs = sorted(set(theirs) ^ set(ours)) or ["the order"]
        raise UserError(
            f"The head of {what} was trained on {len(theirs)} classes, and the images here have {len(ours)}; they differ "
            f"in {', '.join(differs[:3])}. Use the data that it was trained on, or another head"
        )
