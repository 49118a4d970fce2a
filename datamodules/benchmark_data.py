"""Serves an ID set and its OOD sets as images to any LightningModule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from clip_ood.data.benchmark import Benchmark
from clip_ood.data.labelled import ImageTable
from clip_ood.datamodules.evaluation_data import EvaluationData
from clip_ood.datamodules.image_data import EpochBatches, EvaluationImages, TrainingImages
from clip_ood.datamodules.workers import loading
from clip_ood.errors import UserError


class BenchmarkData(EvaluationData):
    """Loads batches as `LabelledImages`: images (B, 3, H, W), labels (B,), indices (B,), which are rows of the image set.

    `transform` makes an image of a PIL picture, with one size for all; `augmented`, if given, makes those that are trained on.
    In training, `batch_size` is that of all devices together, and images that do not fill a batch are left for another epoch; in
    evaluation it is that of each device. Raises: UserError for a batch size that the devices cannot share, or that is larger than
    the training set; what an image that cannot be read raises.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        transform: Callable[[Image.Image], Tensor],
        batch_size: int,
        augmented: Callable[[Image.Image], Tensor] | None = None,
        seed: int = 0,
        num_workers: int | None = None,
    ) -> None:
        tables = {key: ImageTable(part, benchmark.labels(part)) for key, part in benchmark.parts.items()}
        super().__init__(benchmark, tables, batch_size)
        self.images, self.class_names = benchmark.images, benchmark.class_names
        self.transform, self.augmented = transform, augmented or transform
        self.seed, self.num_workers = seed, num_workers

    def train_dataloader(self) -> DataLoader:
        trainer, table = self.trainer, self.tables["train"]
        if self.batch_size % trainer.world_size or self.batch_size > len(table):
            raise UserError(
                f"batch_size is {self.batch_size}, expected a multiple of the {trainer.world_size} devices, and at most the {len(table)} "
                "training images"
            )
        place = (self.seed, trainer.global_rank, trainer.world_size, lambda: trainer.current_epoch)
        batches = EpochBatches(len(table), self.batch_size, 1, *place)
        dataset = TrainingImages(table, self.images[table.part.images], self.augmented, self.seed)
        return DataLoader(dataset, batch_sampler=batches, **self._loading())

    def loader(self, table: ImageTable) -> DataLoader:
        size = tuple(self._blank().shape[1:])
        images = EvaluationImages(table, self.images[table.part.images], self.transform, size)
        return DataLoader(images, sampler=self._batches(len(table)), batch_size=None, **self._loading())

    def _blank(self) -> Tensor:
        return self.transform(Image.new("RGB", (256, 256)))

    def _loading(self) -> dict[str, Any]:
        return loading(self.trainer, self.num_workers, self.batch_size * self._blank().nbytes)
