"""The metrics of OOD detection as a torchmetrics `Metric`, for any training or evaluation loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from clip_ood.metrics.curves import OF_SCORES, curve_metrics
from clip_ood.metrics.ranking import rank_scores


class OODMetrics(Metric):
    """AUROC, FPR@95 (both ways), AUPR (both ways) and best F1 over all batches and processes, exactly.

    Scores are used as they are: no sigmoid, no normalisation. Formulas at `clip_ood.metrics.curve_metrics`. torchmetrics
    gathers the scores of all processes; each process must call `update`, with an empty batch if it has no image. Call
    `compute` at the end of the epoch, then `reset`; calling the metric itself fails on a batch of a single class.

    Args:
        detectors: names of K detectors whose scores are the columns of each batch; None for scores of one detector.
        kwargs: those of `torchmetrics.Metric`.

    Example:
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

    is_differentiable = False
    higher_is_better = None  # depends on the metric
    full_state_update = False

    scores: list[Tensor]
    is_id: list[Tensor]
    indices: list[Tensor]

    def __init__(self, detectors: Sequence[str] | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        self.detectors = None if detectors is None else list(detectors)
        for state in ("scores", "is_id", "indices"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

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
        is_id = torch.as_tensor(is_id, device=self.device)
        is_id = is_id.expand(len(scores)) if is_id.ndim == 0 else is_id
        row = () if self.detectors is None else (len(self.detectors),)
        if scores.ndim != 1 + len(row) or scores.shape[1:] != row or scores.shape[:1] != is_id.shape:
            expected = "(B,) for both" if self.detectors is None else f"(B, {row[0]}) and (B,)"
            raise ValueError(
                f"scores have shape {tuple(scores.shape)} and is_id {tuple(is_id.shape)}, expected {expected}"
            )
        if ((is_id != 0) & (is_id != 1)).any():
            raise ValueError(f"is_id has values {is_id.unique().tolist()[:5]}, expected 0 (OOD) and 1 (ID) only")
        if indices is not None and indices.shape != is_id.shape:
            raise ValueError(f"indices have shape {tuple(indices.shape)}, expected {tuple(is_id.shape)}, one an image")
        self.scores.append(scores.detach().to(self.device))
        self.is_id.append(is_id.to(torch.uint8))  # bytes: not every backend gathers bool
        if indices is not None:
            self.indices.append(indices.to(self.device))

    def keep(self, detectors: Sequence[str]) -> None:
        """Go on with some of the detectors alone; the same ones in every process."""
        columns = [self.detectors.index(name) for name in detectors]
        self.detectors, self.scores = list(detectors), [scores[:, columns] for scores in self.scores]

    def compute(self) -> dict[str, Tensor]:
        """A float64 scalar (float32 on MPS, which has no other), a fraction in [0, 1], for each name in
        `clip_ood.metrics.METRICS` but f1; of several detectors under "<detector>/<metric>".

        Raises:
            ValueError: only one class was seen, or scores are NaN or infinite; a named detector's message begins with it.
        """
        scores, is_id = dim_zero_cat(self.scores).cpu(), dim_zero_cat(self.is_id).cpu().bool()
        if (indices := joined(self.indices)) is not None:
            rows = first_of_each(indices.cpu() * 2 + is_id)
            scores, is_id = scores[rows], is_id[rows]
        if self.detectors is None:
            return self._metrics(scores, is_id)
        values = {}
        for name, column in zip(self.detectors, scores.unbind(dim=1), strict=True):
            try:
                of_detector = self._metrics(column, is_id)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            values |= {f"{name}/{metric}": value for metric, value in of_detector.items()}
        return values

    def _metrics(self, scores: Tensor, is_id: Tensor) -> dict[str, Tensor]:
        values = curve_metrics(rank_scores(scores[is_id], scores[~is_id]))
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return {name: torch.tensor(values[name], device=self.device, dtype=dtype) for name in OF_SCORES}


def joined(state: list[Tensor] | Tensor) -> Tensor | None:
    """A `cat` state as one tensor, gathered or not yet; None where no process has added a row to it."""
    return dim_zero_cat(state) if len(state) and len(dim_zero_cat(state)) else None


def first_of_each(keys: Tensor) -> Tensor:
    """Rows of the first of each distinct key among keys (n,), in ascending order of the keys.

    >>> first_of_each(torch.tensor([7, 3, 7, 1]))
    tensor([3, 1, 0])
    """
    ordered, rows = keys.sort(stable=True)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    return rows[is_first]
