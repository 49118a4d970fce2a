"""Trains a linear probe, one linear layer on standardised features, by the paper's recipe."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clip_ood.config.method_schema import LinearProbe as Settings
from clip_ood.data.labelled import FeatureTable
from clip_ood.errors import UserError
from clip_ood.head import StandardisedLinear, mean_and_std
from clip_ood.lightning_modules.batches import DeviceBatches
from clip_ood.lightning_modules.zero_shot import ZeroShot
from clip_ood.model import classify, linear
from clip_ood.outputs import Outputs, Reference
from clip_ood.terminal.console import Terminal
from clip_ood.threads import one_thread

SMALL = 1 << 24  # multiplications of a head's product with a batch, up to which one thread does a step


class LinearProbe(ZeroShot):
    """Trains one linear layer with cross-entropy on true labels and Adam.

    The learning rate lr · batch / 256 rises linearly over a tenth of the steps, then falls to 0 by a cosine.
    `tables` holds what it is trained on (`train`; a sweep also takes `val`); it must be set before the module is fitted, or
    tested as PLP. Source: Adaloglou et al. 2024, arXiv 2303.05828. Raises: ValueError when fewer than two classes have images.
    """

    tables: Mapping[str, FeatureTable]

    Settings = Settings
    trained_on: dict[str, int] | None = None

    def __init__(self, settings: Settings | dict[str, Any], width: int, seed: int, **classes) -> None:
        super().__init__(**classes)
        self.settings, self.seed = self.Settings.model_validate(settings), seed
        self.save_hyperparameters(
            {"settings": self.settings.model_dump(mode="json"), "width": width, "seed": seed}, logger=False
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = StandardisedLinear(width, len(self.class_names))

    def labels(self, table: FeatureTable) -> Tensor:
        """Returns the labels that the head may be trained on: (n,), -1 for rows left out."""
        return table.labels

    def targets(self, table: FeatureTable) -> Tensor:
        """Returns the labels of the draw that the head is trained on: (n,), -1 for rows left out."""
        labels = self.labels(table)
        self._check(labels, table)
        return few_shot(labels, self.settings.per_class, self.seed)

    def setup(self, stage: str) -> None:
        if stage != "fit":
            return
        with Terminal(quiet=not self.trainer.is_global_zero).status("Standardising the training features"):
            self._prepare(self.tables["train"])

    def _prepare(self, table: FeatureTable) -> None:
        features = table.stored.features
        self.head.standardise(*mean_and_std(features, table.rows))
        targets = self.targets(table)
        self.trained_on = labels_a_class(targets)
        kept = (targets.view(len(table), -1) >= 0).any(dim=1).nonzero().squeeze(1)
        device = self.trainer.strategy.root_device
        self._batches = DeviceBatches(
            features.take(table.rows[kept], device),
            self.learnt_from(table, kept, targets).to(device),
            self.settings.batch_size,
            self.seed,
            self.trainer.global_rank,
            self.trainer.world_size,
        )

    def learnt_from(self, table: FeatureTable, kept: Tensor, targets: Tensor) -> Tensor:
        """Returns what the head learns of the images at these positions of the table, as batches carry it: (n, …)."""
        return targets[kept]

    def training_batches(self) -> DeviceBatches:
        """Returns shuffled batches of features and labels, on the device."""
        return self._batches

    def on_train_epoch_start(self) -> None:
        self._batches.epoch = self.current_epoch

    def training_step(self, batch: tuple[Tensor, Tensor, int], batch_idx: int) -> Tensor:
        features, labels, size = batch  # labels (n,), or probabilities (n, C)
        share = self.trainer.world_size / size  # devices average gradients, which must add up to that of all rows
        logits = self.head(features)
        loss = cross_entropy(logits, labels, reduction="sum") * share
        hits = (logits.argmax(dim=1) == (labels if labels.ndim == 1 else labels.argmax(dim=1))).sum() * share
        averaged = {"on_step": False, "on_epoch": True, "batch_size": size, "sync_dist": True}
        self.log("train/loss", loss, prog_bar=True, **averaged)
        self.log("train/accuracy", hits, **averaged)
        return loss

    def optimizer_step(self, *args, **kwargs) -> None:
        trained = sum(each.numel() for each in self.parameters() if each.requires_grad)
        rows = self.settings.batch_size / self.trainer.world_size
        with one_thread(rows * trained <= SMALL):
            super().optimizer_step(*args, **kwargs)

    def outputs(self, batch: Outputs) -> Outputs:
        return classify(batch, linear(*self.head.folded()))

    def reference(self) -> Reference:
        weight, bias = self.head.folded()
        return replace(super().reference(), weight=weight, bias=bias)

    def configure_optimizers(self):
        optimizer = self.optimizer()
        schedule = warmup_cosine(int(self.trainer.estimated_stepping_batches))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer(self) -> torch.optim.Adam:
        return torch.optim.Adam([adam_group(self.settings, self.head.parameters())])

    def _check(self, labels: Tensor, table: FeatureTable) -> None:
        found = labels[labels >= 0].unique().numel()
        if found < 2:
            raise UserError(
                f"A linear probe needs images of two classes or more, and the {len(labels)} readable training images "
                f"show {found}. Look at the labels of data.id, or take --method={{zero_shot: {{}}}}"
            )


def labels_a_class(targets: Tensor) -> dict[str, int]:
    """Returns how many images a head learns from, in how many classes, and the smallest and largest number in a class."""
    labels = targets.view(len(targets), -1).amax(dim=1)  # in a sweep, those at the lowest threshold
    counts = labels[labels >= 0].unique(return_counts=True)[1]
    return {"images": int(counts.sum()), "classes": len(counts), "fewest": int(counts.min()), "most": int(counts.max())}


def adam_group(settings: Settings, parameters: Iterable[Tensor]) -> dict[str, Any]:
    """Returns parameters with their learning rate, scaled to the batch, and their weight decay."""
    lr = settings.lr * settings.batch_size / 256
    return {"params": list(parameters), "lr": lr, "weight_decay": settings.weight_decay}


def warmup_cosine(steps: int, warmup: float = 0.1):
    """Returns the factor of the learning rate at a step: linear from 1/w to 1 over the first w = warmup · steps, then cosine to
    0.

    >>> schedule = warmup_cosine(100)
    >>> [round(schedule(step), 3) for step in (0, 9, 10, 55, 100)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    rising = max(int(warmup * steps), 1)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * min((step - rising) / max(steps - rising, 1), 1)))

    return factor


def few_shot(labels: Tensor, per_class: int | None, seed: int) -> Tensor:
    """Returns labels (n,) with all but a seeded draw of `per_class` rows of each class set to -1, or all labels for None."""
    if per_class is None:
        return labels
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    kept = torch.full_like(labels, -1)
    for label in labels[labels >= 0].unique():
        rows = order[labels[order] == label][:per_class]
        kept[rows] = label
    return kept
