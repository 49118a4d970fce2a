"""The metrics of OOD detection as a torchmetrics `Metric`, for any training or evaluation loop."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from clip_ood.metrics.curves import curve_metrics
from clip_ood.metrics.gathered import GatheredMetric
from clip_ood.metrics.ranking import rank_scores


class OODMetrics(GatheredMetric):
    """AUROC, FPR@95 (both ways), AUPR (both ways) and best F1 over all batches and processes, exactly.

    Scores are used as they are: no sigmoid, no normalisation. Formulas at `clip_ood.metrics.curve_metrics`. torchmetrics
    gathers the scores of all processes; each process must call `update`, with an empty batch if it has no image. Call
    `compute` at the end of the epoch, then `reset`; calling the metric itself fails on a batch of a single class.

    Args:
        detectors: names of K detectors whose scores are the columns of each batch; None for scores of one detector.
        kwargs: those of `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = OODMetrics()
        >>> metric.update(torch.tensor([-900.0, -990.0]), torch.tensor([True, False]))
        >>> metric.update(torch.tensor([-950.0, -930.0]), torch.tensor([True, False]))
        >>> metric.compute()["auroc"]
        tensor(0.7500, dtype=torch.float64)

        In a LightningModule of yours, whose first validation loader holds ID and whose second holds OOD images:

        >>> from lightning.pytorch import LightningModule, Trainer
        >>> from torch.utils.data import DataLoader
        >>> class Classifier(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.ood_val = OODMetrics(["msp", "energy"])
        ...     def validation_step(self, logits, batch_idx, dataloader_idx):
        ...         scores = torch.stack([logits.softmax(dim=1).amax(dim=1), logits.logsumexp(dim=1)], dim=1)
        ...         self.ood_val.update(scores, dataloader_idx == 0)
        ...     def on_validation_epoch_end(self):
        ...         self.log_dict({f"ood_val/{name}": value for name, value in self.ood_val.compute().items()})
        ...         self.ood_val.reset()
        >>> loaders = [DataLoader(each, batch_size=2) for each in (torch.eye(4), torch.ones(3, 4))]
        >>> quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
        >>> trainer = Trainer(accelerator="cpu", devices=1, **quiet)
        >>> trainer.validate(Classifier(), loaders, verbose=False)[0]["ood_val/msp/auroc"]
        1.0
    """

    of_image: ClassVar[tuple[str, ...]] = ("is_id",)

    is_id: list[Tensor]

    def update(self, scores: Tensor, is_id: Tensor | bool, indices: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            scores: (B,) floating point, or (B, K) for K detectors; higher is more in-distribution, on any scale.
            is_id: (B,) bool or 0/1, which images are in-distribution; one truth value stands for the whole batch.
            indices: (B,) int64, an image's number among the ID or among the OOD images. An image that comes twice, as
                those that Lightning's distributed sampler repeats, then counts once. Give them with every batch or never.

        Raises:
            ValueError: shapes that are not these; is_id other than 0 and 1.
        """
        self._add(scores, indices, is_id=is_id)

    def compute(self) -> dict[str, Tensor]:
        """A float64 scalar (float32 on MPS, which has no other), a fraction in [0, 1], for each name in
        `clip_ood.metrics.METRICS` but f1; of several detectors under "<detector>/<metric>".

        Raises:
            ValueError: only one class was seen, or scores are NaN or infinite; a named detector's message begins with it.
        """
        return super().compute()

    def _keys(self, indices: Tensor, is_id: Tensor) -> Tensor:
        return indices * 2 + is_id

    def _metrics(self, scores: Tensor, is_id: Tensor) -> dict[str, Tensor]:
        return self._tensors(curve_metrics(rank_scores(scores[is_id], scores[~is_id])))
