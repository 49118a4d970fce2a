"""Pseudo-label probing (PLP) trains a linear probe on labels that the text encoder predicts."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from clip_ood.config.method_schema import PLP as Settings
from clip_ood.data.labelled import FeatureTable
from clip_ood.errors import UserError
from clip_ood.lightning_modules.linear_probe import LinearProbe
from clip_ood.outputs import Outputs
from clip_ood.texts.pseudo_labels import class_probabilities, most_confident, pseudo_labels, pseudo_probabilities

ENOUGH = 2  # images in a class


class PLP(LinearProbe):
    """A linear probe trained on confident pseudo-labels; true labels are used only for reporting.

    With `targets: soft`, the cross-entropy is that of the text encoder's probabilities of an image, in the place of its pseudo-label.

    Attributes: report, once the pseudo-labels are known: images, passed, classes, starved (classes with fewer than 2 of the
    images that passed), accuracy of the images that passed (None without true labels). Class statistics of detectors use the same
    pseudo-labels. Raises: ValueError when fewer than two classes are left.
    """

    Settings = Settings
    report: dict[str, int | float | None] | None = None

    def on_test_start(self) -> None:
        if self.report is None:  # the head was trained before
            table = self.tables["train"]
            self._report(self.labels(table), table)

    def labels(self, table: FeatureTable) -> Tensor:
        return torch.cat([self._pseudo_labels(table[rows]) for rows in torch.arange(len(table)).split(8192)])

    def targets(self, table: FeatureTable) -> Tensor:
        if self.settings.drawn == "at_random":
            return super().targets(table)
        labels = self.labels(table)
        self._check(labels, table)
        text, parts = self.text_embeddings, torch.arange(len(table)).split(8192)
        confidence = [pseudo_probabilities(table[rows].embeddings, text, self.logit_scale)[0] for rows in parts]
        return most_confident(labels, torch.cat(confidence), self.settings.per_class)

    def learnt_from(self, table: FeatureTable, kept: Tensor, targets: Tensor) -> Tensor:
        if self.settings.targets == "hard":
            return super().learnt_from(table, kept, targets)
        return table.stored.embeddings.take(table.rows[kept])  # fewer numbers than probabilities of many classes

    def training_step(self, batch: tuple[Tensor, Tensor, int], batch_idx: int) -> Tensor:
        features, given, size = batch
        if self.settings.targets == "soft":
            given = class_probabilities(given, self.text_embeddings, self.logit_scale)
        return super().training_step((features, given, size), batch_idx)

    def bank_outputs(self, batch: Outputs) -> Outputs:
        return replace(self.outputs(batch), labels=self._pseudo_labels(batch))

    def _pseudo_labels(self, batch: Outputs) -> Tensor:
        text = self.text_embeddings.to(batch.embeddings.device)
        return pseudo_labels(batch.embeddings, text, self.logit_scale, self.settings.min_confidence)

    def _report(self, labels: Tensor, table: FeatureTable) -> None:
        passed = labels >= 0
        known = passed & (table.labels >= 0)
        right = (labels == table.labels)[known]
        counts = labels[passed].bincount(minlength=len(self.class_names))
        self.report = {
            "images": len(table),
            "passed": int(passed.sum()),
            "classes": int((counts > 0).sum()),
            "starved": int((counts < ENOUGH).sum()),
            "accuracy": right.float().mean().item() if len(right) else None,
        }

    def _check(self, labels: Tensor, table: FeatureTable) -> None:
        self._report(labels, table)
        if self.report["classes"] < 2:
            raise UserError(
                f"PLP: {self.report['passed']} of {self.report['images']} images have a pseudo-probability of at least "
                f"{self.settings.min_confidence:g}, in {self.report['classes']} classes; a head needs two classes. Lower "
                "method.plp.min_confidence (0 keeps every image), or look at data.id.class_names and data.prompts."
            )
