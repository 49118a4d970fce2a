"""The base of all evaluations: the parts of a benchmark as loaders, each image once, on any number of devices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from clip_ood.data.benchmark import Benchmark
from clip_ood.data.labelled import LabelledTable
from clip_ood.errors import UserError


class EvaluationData(LightningDataModule, ABC):
    """Tables of a benchmark's parts, by key, and those that are `evaluated`: [bank, val, ood_val, id_test, csid…, ood…].

    All of them are validated every `evaluate_every` epochs (0: never), and only ID val in between.
    """

    evaluate_every = 1

    def __init__(self, benchmark: Benchmark, tables: Mapping[str, LabelledTable], batch_size: int) -> None:
        super().__init__()
        self.tables, self.batch_size = tables, batch_size
        self.evaluated = [tables[part.key] for part in benchmark.evaluated]
        for table in self.evaluated:
            if not len(table.rows):
                raise UserError(f"Image set {table.part.name}: none of its images could be read")
        if "train" in tables:
            _check_classes(benchmark, tables["train"])

    def setup(self, stage: str) -> None:
        """Raises: UserError for a Trainer that would divide the images among its devices a second time."""
        if self.trainer.world_size > 1 and self.trainer._accelerator_connector.use_distributed_sampler:
            raise UserError(
                f"{type(self).__name__} divides images among devices itself, each exactly once, and this Trainer would divide them "
                "again: give it use_distributed_sampler=False"
            )

    @abstractmethod
    def loader(self, table: LabelledTable) -> DataLoader:
        """This device's batches of a table."""

    def test_dataloader(self) -> list[DataLoader]:
        return [self.loader(table) for table in self.evaluated]

    def val_dataloader(self) -> list[DataLoader]:
        due = self.evaluate_every and (self.trainer.current_epoch + 1) % self.evaluate_every == 0
        return self.test_dataloader() if due else [self.val_loader()]

    def val_loader(self) -> DataLoader:
        """Returns the loader of ID val alone."""
        return self.loader(self.tables["val"])

    def _batches(self, count: int, limit: int | None = None) -> list[Tensor]:
        """Returns positions of this device's batches, of at most `limit`; every device has as many, since detectors score them together."""
        mine = torch.arange(count).tensor_split(self.trainer.world_size)[self.trainer.global_rank]
        most = -(-count // self.trainer.world_size)
        size = self.batch_size if limit is None else min(self.batch_size, limit)
        return list(mine.tensor_split(-(-most // size)))  # some are empty if there are too few rows


def _check_classes(benchmark: Benchmark, train: LabelledTable) -> None:
    """Raises UserError if a class has training images, and none of them could be read."""
    lost = set(benchmark.labels(train.part)) - set(train.labels.tolist()) - {-1}
    if lost:
        named = benchmark.class_names[min(lost)] if benchmark.class_names else min(lost)
        raise UserError(
            f"Image set {benchmark.images[train.part.images].name}: none of the training images of class {named!r} could be read: mend "
            "them, or take the class out"
        )
