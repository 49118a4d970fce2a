"""CoOp learns the context of the class names' prompts on stored embeddings; the text tower alone is run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clip_ood.backbones.backbone import Backbone
from clip_ood.config.method_schema import CoOp as Settings
from clip_ood.data.labelled import FeatureTable
from clip_ood.distributed import gather_rows
from clip_ood.errors import UserError
from clip_ood.lightning_modules.batches import DeviceBatches
from clip_ood.lightning_modules.linear_probe import few_shot, labels_a_class
from clip_ood.lightning_modules.zero_shot import ZeroShot
from clip_ood.outputs import Reference
from clip_ood.terminal.console import Terminal
from clip_ood.texts.learnt_prompts import LearntPrompts

SHOWN = 3  # class names in a message


class CoOp(ZeroShot):
    """Context optimisation: cross-entropy of z_c = s ⟨h, t_c⟩ on true labels, in which the prompts of t have a learnt context.

    h: stored unit-norm embeddings; t (C, E): what the frozen text tower makes of `LearntPrompts`; s: the model's logit scale. SGD with
    a momentum of 0.9; the first epochs warm up at a small, constant rate, which then falls by a cosine. `learnt` (C, E) holds t as of
    the last epoch, and is what detectors, checkpoints and detector folders have; a checkpoint also keeps the context.
    With several processes, each runs the tower for its share of the classes, and all see every batch whole.

    names: the names of each class (None: its only one). Before a fit, `tables` and `text_tower`, which makes the encoder of texts, must
    be set; a test needs neither. Source: Zhou et al. 2022, arXiv 2109.01134; images are not augmented here, as their features are stored.
    Raises: UserError for images of fewer than two classes, and if a class without any has a context of its own.
    """

    tables: Mapping[str, FeatureTable]

    Settings = Settings
    trained_on: dict[str, int] | None = None
    _kept_after: int | None = None  # steps after which the learnt embeddings were kept

    def __init__(
        self, settings: Settings | dict[str, Any], seed: int, names: Sequence[Sequence[str]] | None = None, **classes
    ) -> None:
        super().__init__(**classes)
        self.settings, self.seed = self.Settings.model_validate(settings), seed
        self.names = [list(each) for each in names or [[name] for name in self.class_names]]
        kept = {"settings": self.settings.model_dump(mode="json"), "seed": seed, "names": self.names}
        self.save_hyperparameters(kept, logger=False)
        self.register_buffer("learnt", self.text_embeddings.float().clone())

    def reference(self) -> Reference:
        return replace(super().reference(), text_embeddings=self.learnt)

    # The fit

    def setup(self, stage: str) -> None:
        if stage != "fit":
            return
        with Terminal(quiet=not self.trainer.is_global_zero).status("Loading the text tower"):
            self._tower = [self.text_tower().to(self.trainer.strategy.root_device)]  # no part of the checkpoint
            self.prompts = self.make_prompts(self._tower[0])
        self._prepare(self.tables["train"])

    def make_prompts(self, tower: Backbone) -> LearntPrompts:
        """Returns the prompts before the first step."""
        own = self.settings
        return LearntPrompts(
            tower, self.names, own.context, own.start, own.class_position, own.class_specific, self.seed
        )

    def _prepare(self, table: FeatureTable) -> None:
        targets = few_shot(table.labels, self.settings.per_class, self.seed)
        self._check(targets)
        self.trained_on = labels_a_class(targets)
        kept, device = (targets >= 0).nonzero().squeeze(1), self.trainer.strategy.root_device
        rows = self.training_rows(table, kept, device)
        self._batches = DeviceBatches(rows, targets[kept].to(device), self.settings.batch_size, self.seed)

    def training_rows(self, table: FeatureTable, kept: Tensor, device: torch.device) -> Tensor:
        """Returns what is learnt from, for the images at these positions of the table: (n, …) on the device."""
        return table.stored.embeddings.take(table.rows[kept], device)

    def _check(self, targets: Tensor) -> None:
        counts = targets[targets >= 0].bincount(minlength=len(self.class_names))
        without = [name for name, count in zip(self.class_names, counts.tolist(), strict=True) if not count]
        listed = ", ".join(without[:SHOWN]) + (", …" if len(without) > SHOWN else "")
        if len(self.class_names) - len(without) < 2:
            raise UserError(
                f"Prompts are learnt from images of two classes or more, and the readable training images show "
                f"{len(self.class_names) - len(without)}. Look at the labels of data.id, or take --method={{zero_shot: {{}}}}"
            )
        if without and self.settings.class_specific:
            raise UserError(
                f"Nothing can be learnt for the context of classes without training images ({listed}): give them some, or learn one "
                "context for all classes (class_specific: false)"
            )
        if without and self.trainer.is_global_zero:
            Terminal().print(
                f"{len(without)} of {len(self.class_names)} classes have no training image ({listed}); their prompts have the context "
                "that is learnt from the others"
            )

    def training_batches(self) -> DeviceBatches:
        """Returns shuffled batches of embeddings and labels, on the device, the same in every process."""
        return self._batches

    def on_train_epoch_start(self) -> None:
        self._batches.epoch = self.current_epoch

    def training_step(self, batch: tuple[Tensor, Tensor, int], batch_idx: int) -> Tensor:
        rows, labels, size = batch
        loss, logits = self.loss(rows, labels)
        averaged = {"on_step": False, "on_epoch": True, "batch_size": size}
        self.log("train/loss", loss, prog_bar=True, **averaged)
        self.log("train/accuracy", (logits.argmax(dim=1) == labels).float().mean(), **averaged)
        return loss * self.trainer.world_size  # devices average gradients, and each has those of its classes

    def loss(self, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss of a batch, and the logits (n, C) by which its accuracy is told."""
        return self.classification(rows.float(), labels, self.embed(self.prompts))

    def classification(self, rows: Tensor, labels: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the cross-entropy of s ⟨h, t⟩ for embeddings h (n, E) and text embeddings t (C, E), and these logits (n, C)."""
        logits = self.logit_scale * rows @ text.T  # (n, E) @ (E, C) -> (n, C)
        return cross_entropy(logits, labels), logits

    def embed(self, prompts: LearntPrompts) -> Tensor:
        """Returns the text embeddings (C, E) of prompts, of which each process has computed its share of the classes."""
        classes, rank, world = len(self.names), self.global_rank, self.trainer.world_size
        first, last = rank * classes // world, (rank + 1) * classes // world
        some = min(first, classes - 1)  # a process without a share takes part in the backward pass, too
        own = prompts(self._tower[0], some, max(last, some + 1))[: last - first]
        shares = gather_rows(own.detach())
        shares[rank] = own
        return torch.cat(shares)

    def configure_optimizers(self):
        own = self.settings
        optimizer = torch.optim.SGD(self.trained_parameters(), own.lr, momentum=0.9, weight_decay=own.weight_decay)
        schedule = constant_then_cosine(own.epochs, own.warmup_epochs, own.warmup_lr / own.lr)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}

    def trained_parameters(self) -> list[Tensor]:
        """Returns what takes gradients."""
        return [self.prompts.context]

    # What is learnt

    def on_validation_start(self) -> None:
        self._keep()

    def on_train_epoch_end(self) -> None:  # before the epoch's checkpoint is written
        self._keep()

    @torch.no_grad()
    def _keep(self) -> None:
        if self._kept_after != (steps := self.trainer.global_step):  # the epoch's validation may have kept them
            self._kept_after = steps
            self.keep()

    def keep(self) -> None:
        """Takes the text embeddings as they are now."""
        self.learnt.copy_(self.embed(self.prompts))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        weights = checkpoint["state_dict"]
        checkpoint["prompts"] = {name: weights.pop(name) for name in list(weights) if name.endswith(".context")}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if hasattr(self, "prompts"):
            checkpoint["state_dict"] |= checkpoint["prompts"]


def constant_then_cosine(epochs: int, warmup: int, start: float) -> Callable[[int], float]:
    """Returns the factor of the learning rate in an epoch: `start` in the first `warmup` ones, then a cosine from 1 whose 0 lies `epochs`
    after its begin, as in CoOp's code.

    >>> schedule = constant_then_cosine(4, 1, 0.005)
    >>> [round(schedule(epoch), 3) for epoch in range(4)]
    [0.005, 1.0, 0.854, 0.5]
    """

    def factor(epoch: int) -> float:
        return start if epoch < warmup else 0.5 * (1 + math.cos(math.pi * min((epoch - warmup) / epochs, 1)))

    return factor
