"""Stored features as loaders: the training features for a head, and [bank, id_test, csid…, ood…] for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from clip_ood.data.benchmark import Benchmark
from clip_ood.data.labelled import FeatureTable
from clip_ood.errors import UserError
from clip_ood.features.stored_set import Features
from clip_ood.outputs import Outputs


class FeatureData(LightningDataModule):
    """The parts of a benchmark, served from the store. Divides rows among devices itself: unpadded, each row once.

    `training_batches` gives what a head is trained on, once it is set up: the method knows.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        stored: dict[str, Features],
        batch_size: int,
        training_batches: Callable[[], Iterable[Any]] | None = None,
    ) -> None:
        super().__init__()
        self.batch_size, self.training_batches = batch_size, training_batches
        self.tables = {
            key: FeatureTable(part, stored[part.images], benchmark.labels(part))
            for key, part in benchmark.parts.items()
        }
        self.evaluated = [self.tables[part.key] for part in benchmark.evaluated]
        for table in self.evaluated:
            if not len(table):
                raise UserError(f"Image set {table.part.name}: none of its images could be read")

    @property
    def train(self) -> FeatureTable:
        return self.tables["train"]

    def train_dataloader(self):
        return self.training_batches()

    def test_dataloader(self) -> list[DataLoader]:
        return [DataLoader(table, sampler=self._batches(len(table)), batch_size=None) for table in self.evaluated]

    def val_dataloader(self) -> list[DataLoader]:
        return self.test_dataloader()

    def transfer_batch_to_device(self, batch, device: torch.device, dataloader_idx: int):
        return batch.map(lambda tensor: tensor.to(device)) if isinstance(batch, Outputs) else batch

    def _batches(self, count: int) -> list[Tensor]:
        """Positions of this device's batches: as many on every device, since detectors score them together."""
        mine = torch.arange(count).tensor_split(self.trainer.world_size)[self.trainer.global_rank]
        most = -(-count // self.trainer.world_size)
        return list(mine.tensor_split(-(-most // self.batch_size)))  # empty ones where there are too few rows
