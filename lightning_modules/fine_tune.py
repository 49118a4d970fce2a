"""Fine-tunes the whole image tower and a linear head on its features g."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clip_ood.backbones.backbone import Backbone
from clip_ood.config.method_schema import FineTune as Settings
from clip_ood.data.labelled import LabelledImages
from clip_ood.lightning_modules.layer_decay import parameter_groups
from clip_ood.lightning_modules.zero_shot import ZeroShot
from clip_ood.model import classify, encode, linear
from clip_ood.outputs import NOTHING, Inside, Outputs, Reference


class FineTune(ZeroShot):
    """Trains with cross-entropy on true labels, AdamW with layer-wise learning rates, mixup and cutmix.

    Every random draw of a step depends only on seed, step and rank, so that a resumed run goes the same way.

    `head` (W (C, D), b (C,)) holds the head's initial weights; None draws random ones. Detectors see the layers and patch tokens
    that `inside` names. The joint-space projection stays as it is,
    so that embeddings h show how far the tower has moved from the text.
    Source: Adaloglou et al. 2024, arXiv 2303.05828, with the faults of its published run mended.
    """

    def __init__(
        self,
        settings: Settings | dict[str, Any],
        backbone: Backbone,
        width: int,
        seed: int,
        head: tuple[Tensor, Tensor] | None = None,
        inside: Inside = NOTHING,
        **classes,
    ) -> None:
        super().__init__(**classes)
        self.inside = inside
        self.settings, self.seed = (settings := Settings.model_validate(settings)), seed
        self.save_hyperparameters(
            {"settings": settings.model_dump(mode="json"), "width": width, "seed": seed}, logger=False
        )
        self.backbone = backbone.train_images(settings.gradient_checkpointing, settings.compile)
        self.head = nn.Linear(width, len(self.class_names))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
            if head is not None:
                self.head.weight.copy_(head[0])
                self.head.bias.copy_(head[1])
        self._mix = None
        if settings.mixup or settings.cutmix:
            self._mix = Mixup(
                settings.mixup,
                settings.cutmix,
                label_smoothing=settings.label_smoothing,
                num_classes=len(self.class_names),
            )
        self.train()

    def train(self, mode: bool = True) -> FineTune:
        super().train(mode)
        if self.settings.freeze_batch_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def on_validation_epoch_start(self) -> None:  # averaged weights are in place by now
        self._share_buffers()

    def on_test_start(self) -> None:
        self._share_buffers()

    def training_step(self, batch: LabelledImages, batch_idx: int) -> Tensor:
        self._seed_step(batch_idx)
        images, labels = batch.images, batch.labels
        if self._mix is not None:
            images, targets = self._mix(images, labels)  # targets (B, C), smoothed
            loss = cross_entropy(logits := self._logits(images), targets)
        else:
            loss = cross_entropy(logits := self._logits(images), labels, label_smoothing=self.settings.label_smoothing)
        size = len(labels)
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=size, sync_dist=True)
        hits = (logits.argmax(dim=1) == labels).float().mean()
        self.log("train/accuracy", hits, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        return loss

    def outputs(self, batch: LabelledImages) -> Outputs:
        given = classify(encode(self, batch.images, self.inside), linear(self.head.weight, self.head.bias))
        return replace(given, labels=batch.labels, indices=batch.indices)

    def encode_image(self, images: Tensor) -> Tensor:
        """Returns features g (B, D) of images; B may be 0, for a set smaller than the number of devices, which towers refuse."""
        return self.backbone.encode_image(images) if len(images) else images.new_empty(0, self.head.in_features)

    def encode_inside(self, images: Tensor, wanted: Inside) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Returns features g (B, D) of images, those of layers, and patch tokens, by name; B may be 0."""
        if len(images):
            return self.backbone.encode_inside(images, wanted)
        blank = images.new_zeros(1, *images.shape[1:])
        features, layers, tokens = self.backbone.encode_inside(blank, wanted)
        none = [{name: each[:0] for name, each in of.items()} for of in (layers, tokens)]
        return features[:0], *none

    def project(self, features: Tensor) -> Tensor | None:
        """Returns embeddings h (B, E) of features; None without a joint space."""
        return self.backbone.project(features)

    def reference(self) -> Reference:
        return replace(super().reference(), weight=self.head.weight.detach(), bias=self.head.bias.detach())

    def configure_optimizers(self):
        settings = self.settings
        scale = settings.batch_size / 256
        tower = self.backbone.image_tower
        groups = parameter_groups(tower, self.head, settings.lr * scale, settings.layer_decay, settings.weight_decay)
        optimizer = torch.optim.AdamW(groups)
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = round(settings.warmup_epochs / settings.epochs * steps)
        schedule = warmup_cosine(steps, warmup, settings.warmup_lr / settings.lr, settings.final_lr / settings.lr)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _logits(self, images: Tensor) -> Tensor:
        return self.head(self.backbone.encode_image(images))

    def _share_buffers(self) -> None:
        """Gives every device the first one's BatchNorm statistics, which are those that are saved."""
        if self.trainer.world_size > 1:
            for buffer in self.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def _seed_step(self, batch_idx: int) -> None:
        draw = np.random.SeedSequence([self.seed, self.current_epoch, batch_idx, self.global_rank]).generate_state(2)
        np.random.seed(draw[0])  # timm's mixup draws from numpy
        torch.manual_seed(int(draw[1]))


def warmup_cosine(steps: int, warmup: int, start: float, end: float):
    """Returns the factor of the learning rate at a step: linear from `start` to 1 over the first `warmup` steps, then cosine to
    `end`.

    >>> schedule = warmup_cosine(100, 10, start=0.1, end=0.0)
    >>> [round(schedule(step), 3) for step in (0, 5, 10, 55, 100)]
    [0.1, 0.55, 1.0, 0.5, 0.0]
    """

    def factor(step: int) -> float:
        if step < warmup:
            return start + (1 - start) * step / warmup
        progress = min((step - warmup) / max(steps - warmup, 1), 1)
        return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor
