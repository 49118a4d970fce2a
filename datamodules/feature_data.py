"""Serves stored features as loaders: the training features for a head, and [bank, id_test, csid…, ood…] for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from clip_ood.data.benchmark import Benchmark
from clip_ood.data.labelled import FeatureTable
from clip_ood.datamodules.evaluation_data import EvaluationData
from clip_ood.features.stored_set import Features
from clip_ood.outputs import Outputs


class FeatureData(EvaluationData):
    """Serves the parts of a benchmark from the store. It divides rows among devices itself, unpadded, each row once.

    `training_batches` returns what a head is trained on, once it is set up; the method sets it before the fit. Of patch tokens, loaders read
    the kinds in `tokens`, and of the bank only those of the rows that `patched` picks among its rows (n,): what detectors look at.
    """

    training_batches: Callable[[], Iterable[Any]]

    def __init__(
        self,
        benchmark: Benchmark,
        stored: dict[str, Features],
        batch_size: int,
        tokens: Collection[str] = (),
        patched: Callable[[Tensor], Tensor] = lambda rows: rows,
    ) -> None:
        tables = {
            key: FeatureTable(part, stored[part.images], benchmark.labels(part)).with_tokens(tokens)
            for key, part in benchmark.parts.items()
        }
        tables["bank"] = tables["bank"].with_tokens(tokens, patched(tables["bank"].rows))
        super().__init__(benchmark, tables, batch_size)
        self._val: list[Outputs] | None = None

    @property
    def train(self) -> FeatureTable:
        return self.tables["train"]

    def train_dataloader(self):
        return self.training_batches()

    def loader(self, table: FeatureTable) -> DataLoader:
        batches = [
            positions[batch] for positions, most in table.groups for batch in self._batches(len(positions), most)
        ]
        return DataLoader(table, sampler=batches, batch_size=None)

    def val_loader(self) -> DataLoader:
        """Returns ID val, read once and kept on the device, because reading it again takes as long as an epoch."""
        if self._val is None:
            device = self.trainer.strategy.root_device
            kept = self.loader(self.tables["val"].with_tokens(()))
            self._val = [batch.map(lambda tensor: tensor.to(device)) for batch in kept]
        return DataLoader(self._val, batch_size=None)

    def transfer_batch_to_device(self, batch, device: torch.device, dataloader_idx: int):
        return batch.map(lambda tensor: tensor.to(device)) if isinstance(batch, Outputs) else batch
