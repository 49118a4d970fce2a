"""Deals the parts that a predict loop has yet to make to the devices in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from clip_ood.datamodules.workers import loading


class PartsData(LightningDataModule):
    """Loads the parts that `pending` lists as not there yet.

    The first process is asked for all, since another run may be making them too.
    """

    def __init__(self, pending: Callable[[], Iterable[Any]], workers: int | None) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # there may be fewer parts than devices
        self.pending, self.workers = pending, workers

    def setup(self, stage: str) -> None:
        self.parts = self.trainer.strategy.broadcast(list(self.pending()) if self.trainer.is_global_zero else [])

    @property
    def mine(self) -> list[Any]:
        """Returns the parts of this device."""
        return self.parts[self.trainer.global_rank :: self.trainer.world_size]

    def loader(self, dataset: Dataset, batches: Iterable[Any], size: int) -> DataLoader:
        """Returns a loader of a data set's items at `batches`, each of which is a batch of at most `size` bytes."""
        return DataLoader(dataset, sampler=batches, batch_size=None, **loading(self.trainer, self.workers, size))
