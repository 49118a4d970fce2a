"""Detectors fitted on the bank, every other set scored, at test and (on demand) at validation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.progress import track
from torch import Tensor

from callbacks.distributed import exchange, gather_rows
from clip_ood.detectors.build import Omitted
from clip_ood.evaluation import DetectorSuite, Row, Scores, accuracy, table_rows
from clip_ood.outputs import Outputs


@dataclass(frozen=True)
class Results:
    """One evaluation: rows of the table, scores by set, accuracies (fractions), what was left out and must be said."""

    rows: list[Row]
    scored: dict[str, Scores]
    roles: dict[str, str]
    accuracy: float | None
    knn_accuracy: float | None
    omitted: list[Omitted]
    notes: dict[str, list[str]]

    def of_role(self, role: str) -> Scores | None:
        """The scores of the first set of a role; None without one."""
        return next((self.scored[name] for name, its in self.roles.items() if its == role), None)


class OODEvaluation(Callback):
    """Fits detectors on loader 0 (the bank), scores ID val, chooses among candidates by it and OOD val, where that comes
    next, and scores the others (ID test, covariate-shifted ID, OOD).

    The datamodule gives `evaluated`: one table a loader, each with `part`, `labels` and `rows`. After every evaluation
    `results` holds what was found, on rank 0; metrics go to the logger under `ood/<set>/<detector>/<metric>`.
    """

    results: Results | None = None

    def __init__(self, detectors: Sequence[str | Mapping[str, Any]] | None, resamples: int, seed: int) -> None:
        self.specs, self.resamples, self.seed = detectors, resamples, seed

    def _start(self, module: LightningModule) -> None:
        self.suite = DetectorSuite(module.reference(), self.specs)
        self._fitted = False
        self._scored: dict[int, list[Scores]] = defaultdict(list)

    def _batch(self, trainer: Trainer, outputs: Outputs, loader: int) -> None:
        if loader == 0:
            self.suite.update(outputs)
            return
        self._fit(trainer)
        role = trainer.datamodule.evaluated[loader].part.role
        if role == "id":
            self._choose(trainer)
        self._scored[loader].append(self.suite.score(outputs, self._bank_labels if role == "id" else None))

    def _fit(self, trainer: Trainer) -> None:
        if self._fitted:
            return
        self.suite.fit(exchange())
        bank = trainer.datamodule.evaluated[0]
        self._bank_labels = torch.full((int(bank.rows.max()) + 1,), -1)
        self._bank_labels[bank.rows] = bank.labels
        self._fitted = True

    def _choose(self, trainer: Trainer) -> None:
        """Settles which candidates are scored on what is reported, by what is not."""
        roles = [table.part.role for table in trainer.datamodule.evaluated]
        if "ood_val" in roles and roles.index("ood_val") in self._scored:
            val, ood_val = roles.index("val"), self._scored.pop(roles.index("ood_val"))
            device = trainer.strategy.root_device
            chosen = self.suite.choose(_gather(self._scored[val], device), _gather(ood_val, device))
            self._scored[val] = [share.renamed(chosen) for share in self._scored[val]]

    def _end(self, trainer: Trainer) -> None:
        device = trainer.strategy.root_device
        evaluated = trainer.datamodule.evaluated
        scored = {evaluated[i].part.name: _gather(shares, device) for i, shares in self._scored.items()}
        if not trainer.is_global_zero:
            return
        tables = [evaluated[i] for i in self._scored]
        roles = {table.part.name: table.part.role for table in tables}
        groups = {table.part.name: table.part.group for table in tables}
        for table in tables:
            _assert_complete(table.part.name, scored[table.part.name].indices, table.rows)
        labels = next(table.labels for table in tables if table.part.role == "id")
        of_test = scored[next(name for name, role in roles.items() if role == "id")]
        self.results = Results(
            rows=table_rows(scored, roles, groups, self.resamples, self.seed, _watch),
            scored=scored,
            roles=roles,
            accuracy=accuracy(of_test.predictions, labels),
            knn_accuracy=accuracy(of_test.votes, labels),
            omitted=self.suite.omitted,
            notes=self.suite.notes,
        )
        self._log(trainer)

    def _log(self, trainer: Trainer) -> None:
        if trainer.logger is None:
            return
        values = {
            f"ood/{row.ood}/{row.detector}/{metric}": estimate.value
            for row in self.results.rows
            if row.setting == "standard"
            for metric, estimate in row.metrics.items()
        }
        known = {"id/accuracy": self.results.accuracy, "id/knn_accuracy": self.results.knn_accuracy}
        values |= {name: value for name, value in known.items() if value is not None}
        trainer.logger.log_metrics(values, step=trainer.global_step)

    def on_test_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start(module)

    def on_test_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self._batch(trainer, outputs, dataloader_idx)

    def on_test_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._end(trainer)

    def on_validation_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start(module)  # averaged weights, if any, are in place by now

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self._batch(trainer, outputs, dataloader_idx)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._end(trainer)


def _gather(shares: list[Scores], device: torch.device) -> Scores:
    """The scores of one set from all batches and processes, in the order of its rows."""

    def whole(parts: list[Tensor]) -> Tensor:
        return torch.cat(gather_rows(torch.cat(parts).to(device))).cpu()

    indices = whole([share.indices for share in shares])
    order = indices.argsort()
    classes = {
        name: whole([getattr(share, name) for share in shares])[order]
        for name in ("predictions", "votes")
        if getattr(shares[0], name) is not None
    }
    scores = {name: whole([share.scores[name] for share in shares])[order] for name in shares[0].scores}
    return Scores(indices[order], scores, **classes)


def _assert_complete(name: str, indices: Tensor, rows: Tensor) -> None:
    if not torch.equal(indices, rows):
        raise RuntimeError(f"Image set {name}: {len(indices)} scored rows are not its {len(rows)} rows, each once")


def _watch(steps: list) -> Any:
    return track(steps, "Metrics and intervals", transient=True)
