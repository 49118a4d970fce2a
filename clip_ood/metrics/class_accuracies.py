"""Accuracies of what predicts classes, and the loss of a head, over the images of all processes."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy


class ClassAccuracies:
    """Counts, by the name of a set and what predicts its classes, how often it is right, and sums the loss on ID val."""

    def __init__(self, classes: int) -> None:
        self.classes = max(classes, 2)
        self._accuracies: dict[str, MulticlassAccuracy] = {}
        self._loss: MeanMetric | None = None

    def count(self, key: str, classes: Tensor | None, labels: Tensor) -> None:
        """Adds a batch of predicted classes (n,) over the images that have a label; None if nothing predicts classes."""
        if classes is None:
            return
        if key not in self._accuracies:
            micro = MulticlassAccuracy(self.classes, average="micro", ignore_index=-1, validate_args=False)
            self._accuracies[key] = micro.to(labels.device)
        if not len(labels):  # fewer images than processes: torchmetrics refuses an empty batch, and ignores this one
            classes, labels = classes.new_zeros(1), labels.new_full((1,), -1)
        self._accuracies[key].update(classes.to(labels.device), labels)

    def add_loss(self, logits: Tensor | None, labels: Tensor) -> None:
        """Adds a batch of ID val to the mean cross-entropy over its images that have a label; None without a head."""
        if logits is None:
            return
        if self._loss is None:
            self._loss = MeanMetric(nan_strategy="disable").to(labels.device)
        known = labels >= 0
        self._loss.update(cross_entropy(logits[known].float(), labels[known], reduction="none"))

    def compute(self) -> dict[str, float]:
        """Returns the accuracies, and val/loss if there is one, of all processes together."""
        found = {key: metric.compute().item() for key, metric in self._accuracies.items()}
        return found if self._loss is None else found | {"val/loss": self._loss.compute().item()}
