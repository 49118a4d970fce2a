"""A probe sweep trains heads with many settings in one pass, and keeps the one that is best on ID val."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clip_ood.data.labelled import FeatureTable
from clip_ood.errors import UserError
from clip_ood.head import StandardisedLinear
from clip_ood.lightning_modules.linear_probe import LinearProbe, adam_group
from clip_ood.lightning_modules.plp import PLP


class ProbeSweep(LinearProbe):
    """Trains H heads as one linear layer with H · C outputs: each step is one product (n, D) @ (D, H · C), on one stream of batches.

    Heads differ in learning rate, weight decay and confidence threshold, and share initial weights, standardisation (of
    all training images) and batches. The stream holds the images above the lowest threshold; a head's loss is the mean
    over those images of a batch that are above its own threshold. A head therefore equals the ordinary probe with its
    settings, except that with several thresholds the batches of a higher one hold fewer images than batch_size. With
    per_class, each threshold has its own draw, and the stream is their union. A step needs about three times
    batch_size · H · C floats of memory; weights, gradients and Adam's moments need 4 · H · C · D, and a checkpoint holds all
    but the gradients.

    After every epoch the heads are judged on ID val (one forward pass over it), and `head` is the best one at that moment: the
    one with most hits, then the lower NLL. The last epoch's choice is the run's. `sweep` holds a dict for each head: its
    settings, val_accuracy, val_nll (None if it is not finite), chosen.
    Raises: ValueError if no val image has a label, and when every head has diverged.
    """

    sweep: list[dict[str, Any]] | None = None
    _chosen_after: int | None = None  # steps after which the head was chosen

    def __init__(self, settings, width: int, seed: int, **classes) -> None:
        super().__init__(settings, width, seed, **classes)
        self.head.requires_grad_(False)  # it receives weights that were trained in the large layer
        self.candidates = self.settings.candidates()
        self.chosen_among = len(self.candidates)  # heads, by ID val
        self.thresholds = len(
            self.settings.sweep.listed().get("min_confidence", [None])
        )  # T; head h has threshold h % T
        keys = set(type(self.settings.sweep).model_fields)
        self._swept = [candidate.model_dump(include=keys) for candidate in self.candidates]

    def targets(self, table: FeatureTable) -> Tensor:
        """Returns the labels at each threshold: (n, T), -1 if an image is below it."""
        return self._at_each_threshold(super().targets, table)

    def _at_each_threshold(self, labels: Callable[[FeatureTable], Tensor], table: FeatureTable) -> Tensor:
        columns = []
        for candidate in self.candidates[: self.thresholds]:
            self.settings = candidate
            columns.append(labels(table))
        return torch.stack(columns, dim=1)

    def _prepare(self, table: FeatureTable) -> None:
        super()._prepare(table)
        heads, linear = len(self.candidates), self.head.linear
        self.heads = StandardisedLinear(linear.in_features, heads * linear.out_features)
        self.heads.standardise(self.head.mean, self.head.std)
        self.heads.linear.load_state_dict({"weight": linear.weight.repeat(heads, 1), "bias": linear.bias.repeat(heads)})
        self._prepare_val(self.tables["val"])

    def _prepare_val(self, table: FeatureTable) -> None:
        labels = self._at_each_threshold(self.labels, table).amax(dim=1)
        kept = (labels >= 0).nonzero().squeeze(1)
        if not len(kept):
            raise UserError(
                f"The sweep chooses on ID val, and none of its {len(table)} readable images has a label (PLP: a "
                "pseudo-label above the lowest min_confidence). Raise data.splits.val, or lower the threshold"
            )
        self._val_images = len(kept)
        mine = kept.tensor_split(self.trainer.world_size)[self.trainer.global_rank]
        device = self.trainer.strategy.root_device
        self._val = table.stored.features.take(table.rows[mine], device), labels[mine].to(device)

    def training_step(self, batch: tuple[Tensor, Tensor, int], batch_idx: int) -> Tensor:
        features, targets, size = batch
        counts = self.trainer.strategy.reduce((targets >= 0).sum(dim=0), reduce_op="sum")  # (T,), over all devices
        share = (self.trainer.world_size / counts.clamp(min=1)).repeat(len(self.candidates) // self.thresholds)
        losses, hits = self._judge(features, targets)  # (n, H)
        averaged = {"on_step": False, "on_epoch": True, "batch_size": size, "sync_dist": True}
        loss = (losses.sum(dim=0) * share).sum()  # each head's gradient is that of its own mean
        self.log("train/loss", loss / len(share), prog_bar=True, **averaged)
        self.log("train/accuracy", (hits.sum(dim=0) * share).mean(), **averaged)
        return loss

    def _judge(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns cross-entropies and hits (n, H) of features (n, D) with targets (n, T); both are 0 where a target is -1."""
        heads = len(self.candidates)
        targets = targets.repeat(1, heads // targets.shape[1])  # (n, T) -> (n, H)
        logits = self.heads(features).view(len(features) * heads, len(self.class_names))
        losses = cross_entropy(logits, targets.flatten(), reduction="none", ignore_index=-1)
        return losses.view(targets.shape), logits.argmax(dim=1).view(targets.shape) == targets

    # One Adam works on views of the layer, with a group for the heads of one learning rate and weight decay.

    def optimizer(self) -> torch.optim.Adam:
        rows = self.thresholds * len(self.class_names)
        self._views = [parameter.detach().split(rows) for parameter in self.heads.linear.parameters()]
        settings = self.candidates[:: self.thresholds]
        groups = [adam_group(each, views) for each, views in zip(settings, zip(*self._views, strict=True), strict=True)]
        return torch.optim.Adam(groups, fused=True)

    def on_after_backward(self) -> None:
        for views, parameter in zip(self._views, self.heads.linear.parameters(), strict=True):
            for view, gradient in zip(views, parameter.grad.split(len(views[0])), strict=True):
                view.grad = gradient

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        self.heads.zero_grad()

    # The choice.

    def on_validation_start(self) -> None:
        self._choose()

    def on_train_epoch_end(self) -> None:  # before the epoch's checkpoint is written
        self._choose()

    @torch.no_grad()
    def _choose(self) -> None:
        if self._chosen_after == (steps := self.trainer.global_step):
            return  # the epoch's validation has chosen
        self._chosen_after = steps
        totals = torch.zeros(2, len(self.candidates), device=self.device)
        for features, labels in zip(*(each.split(self.settings.batch_size) for each in self._val), strict=True):
            losses, hits = self._judge(features, labels[:, None])
            totals += torch.stack([hits.sum(dim=0), losses.sum(dim=0)])
        totals = self.trainer.strategy.reduce(totals, reduce_op="sum")
        accuracies, nlls = (totals.cpu().double() / self._val_images).tolist()
        sound = [number for number, nll in enumerate(nlls) if isfinite(nll)]
        if not sound:
            raise UserError("Every head of the sweep has diverged: lower sweep.lr")
        best = max(sound, key=lambda number: (accuracies[number], -nlls[number]))
        self.sweep = [
            each | {"val_accuracy": accuracy, "val_nll": nll if isfinite(nll) else None, "chosen": number == best}
            for number, (each, accuracy, nll) in enumerate(zip(self._swept, accuracies, nlls, strict=True))
        ]
        self._take_settings()
        classes = len(self.class_names)
        for ours, theirs in zip(self.head.linear.parameters(), self.heads.linear.parameters(), strict=True):
            ours.copy_(theirs[best * classes : (best + 1) * classes])

    def _take_settings(self) -> None:
        self.settings = next(each for each, row in zip(self.candidates, self.sweep, strict=True) if row["chosen"])
        self.report = None  # PLP's report belongs to another threshold

    # A checkpoint's weights are those of the chosen head; all heads lie beside them, for a run that is resumed.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        weights = checkpoint["state_dict"]
        checkpoint["sweep"] = self.sweep
        checkpoint["heads"] = {name: weights.pop(name) for name in list(weights) if name.startswith("heads.")}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.sweep = checkpoint.get("sweep") or []
        if [{key: head[key] for key in self._swept[0] if key in head} for head in self.sweep] != self._swept:
            raise UserError(
                "The checkpoint is of another sweep: use the values that it was trained with, or --overwrite"
            )
        self._take_settings()
        if hasattr(self, "heads"):
            checkpoint["state_dict"] |= checkpoint["heads"]


class LinearProbeSweep(ProbeSweep):
    """A sweep of linear probes, chosen by their accuracy on val."""


class PLPSweep(ProbeSweep, PLP):
    """A sweep of PLPs, chosen by their agreement with the pseudo-labels of val above the lowest threshold.

    All heads are judged on the same images, and true labels are not used.
    """
