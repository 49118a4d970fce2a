"""Serves images as loaders of fine-tuning: augmented ones for training, and [bank, id_test, csid…, ood…] for evaluation."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import Compose, Normalize

from clip_ood.backbones.backbone import Backbone, Preprocessing
from clip_ood.config.data_schema import Data
from clip_ood.config.method_schema import FineTune
from clip_ood.data.benchmark import Benchmark
from clip_ood.data.image_list import ImageList
from clip_ood.data.labelled import ImageTable, LabelledImages
from clip_ood.datamodules.evaluation_data import EvaluationData
from clip_ood.datamodules.workers import loading
from clip_ood.errors import UserError
from clip_ood.features.stored_set import Features

FLOAT = 4  # bytes


class TrainingImages(Dataset):
    """Maps (position, epoch) to one augmented image; the augmentation depends only on seed, epoch and position."""

    def __init__(self, table: ImageTable, images: ImageList, transform: Callable[[Image.Image], Tensor], seed: int):
        self.rows, self.labels = table.rows, table.labels
        self.images, self.transform, self.seed = images, transform, seed

    def __getitem__(self, item: tuple[int, int]) -> LabelledImages:
        position, epoch = item
        row = self.rows[position]
        image = self.images.read(int(row))
        with isolate_rng(include_cuda=False):
            draw = np.random.SeedSequence([self.seed, epoch, position]).generate_state(3)
            random.seed(int(draw[0]))
            np.random.seed(draw[1])
            torch.manual_seed(int(draw[2]))
            return LabelledImages(self.transform(image), self.labels[position], row)


class EvaluationImages(Dataset):
    """Maps positions (n,) of a table to its images as the encoder expects them, of `size` (H, W)."""

    def __init__(
        self,
        table: ImageTable,
        images: ImageList,
        transform: Callable[[Image.Image], Tensor],
        size: tuple[int, int],
    ) -> None:
        self.rows, self.labels = table.rows, table.labels
        self.images, self.transform, self.size = images, transform, size

    def __getitem__(self, positions: Tensor) -> LabelledImages:
        rows = self.rows[positions]
        images = [self.transform(self.images.read(row)) for row in rows.tolist()]
        batch = torch.stack(images) if images else torch.empty(0, 3, *self.size)  # there are fewer rows than devices
        return LabelledImages(batch, self.labels[positions], rows)


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Draws shuffled batches of (position, epoch) by seed and epoch.

    Each rank gets its share of every batch, and images that do not fill the last batch of an epoch are left for another one.
    batch_size is global and comes in `parts`, which an optimizer step accumulates; `epoch` returns the epoch when the batches are
    asked for.
    """

    def __init__(
        self, count: int, batch_size: int, parts: int, seed: int, rank: int, world: int, epoch: Callable[[], int]
    ) -> None:
        self.count, self.batch_size, self.parts, self.seed = count, batch_size, parts, seed
        self.rank, self.world, self.epoch = rank, world, epoch

    def __len__(self) -> int:
        return self.count // self.batch_size * self.parts

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch()
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed((self.seed << 20) + epoch))
        for positions in order.split(self.batch_size // self.parts)[: len(self)]:
            yield [(position, epoch) for position in positions[self.rank :: self.world].tolist()]


class ImageData(EvaluationData):
    """Serves the parts of a benchmark as images; those that the feature store knows to be unreadable are left out."""

    def __init__(
        self,
        benchmark: Benchmark,
        stored: dict[str, Features],
        backbone: Backbone,
        data: Data,
        settings: FineTune,
        seed: int,
    ) -> None:
        tables = {
            key: ImageTable(part, benchmark.labels(part), stored[part.images].valid)
            for key, part in benchmark.parts.items()
        }
        super().__init__(benchmark, tables, data.batch_size)
        self.images, self.transform = benchmark.images, plain(settings, backbone)
        self.size = backbone.preprocessing.size
        self.augmented = augmentation(settings, backbone.preprocessing)
        self.settings, self.seed, self.num_workers = settings, seed, data.num_workers

    def train_dataloader(self) -> DataLoader:
        trainer, table = self.trainer, self.tables["train"]
        check_batch(self.settings, len(table), trainer.world_size, trainer.accumulate_grad_batches)
        batches = EpochBatches(
            len(table),
            self.settings.batch_size,
            trainer.accumulate_grad_batches,
            self.seed,
            trainer.global_rank,
            trainer.world_size,
            lambda: trainer.current_epoch,
        )
        dataset = TrainingImages(table, self.images[table.part.images], self.augmented, self.seed)
        mine = -(-self.settings.batch_size // trainer.accumulate_grad_batches // trainer.world_size)
        return DataLoader(dataset, batch_sampler=batches, **self._loading(mine))

    def loader(self, table: ImageTable) -> DataLoader:
        images = EvaluationImages(table, self.images[table.part.images], self.transform, self.size)
        batches = self._batches(len(table))
        return DataLoader(images, sampler=batches, batch_size=None, **self._loading(self.batch_size))

    def _loading(self, images: int) -> dict[str, Any]:
        height, width = self.size
        return loading(self.trainer, self.num_workers, images * 3 * height * width * FLOAT)


def check_batch(settings: FineTune, images: int, devices: int, accumulated: int) -> None:
    """Raises ValueError for a global batch that does not divide among devices and accumulated batches, has an odd share
    (mixup and cutmix pair images), or is larger than the training set.
    """
    size, share = settings.batch_size, devices * accumulated
    among = f"{devices} devices × {accumulated} accumulated batches"
    if size % share:
        near = max(size // share, 1) * share
        raise UserError(
            f"method.finetune.batch_size = {size} does not divide by {among}; {near} or {near + share} does"
        )
    if size // share % 2 and (settings.mixup or settings.cutmix):
        raise UserError(
            f"method.finetune.batch_size = {size} gives each of {among} {size // share} images; mixup and cutmix pair "
            f"images: take {size + share}"
        )
    if size > images:
        raise UserError(f"method.finetune.batch_size = {size} is more than the {images} training images; lower it")


def augmentation(settings: FineTune, preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """Returns timm's training transform at the encoder's own size, resizing, mean and std."""
    transform = create_transform(
        preprocessing.size,
        is_training=True,
        scale=(settings.min_crop, 1.0),
        hflip=settings.flip,
        auto_augment=settings.augment,
        re_prob=settings.random_erasing,
        re_mode="pixel",
        interpolation=preprocessing.interpolation,
        color_jitter=None,
        **_pixels(settings, preprocessing),
    )
    for step in transform.transforms:
        for op in getattr(step, "ops", []):
            if op.name == "PosterizeIncreasing":  # at its strongest level, timm keeps 0 bits, which Pillow refuses
                op.level_fn = partial(_at_least_one_bit, op.level_fn)
    return transform


def _at_least_one_bit(level_fn: Callable, level: float, settings: dict) -> tuple[int]:
    return (max(1, level_fn(level, settings)[0]),)


def plain(settings: FineTune, backbone: Backbone) -> Callable[[Image.Image], Tensor]:
    """Returns the encoder's own transform, ending with ImageNet's mean and std if the settings ask for them."""
    if settings.normalise == "model":
        return backbone.transform
    *steps, last = backbone.transform.transforms
    if not isinstance(last, Normalize):
        raise UserError(f"method.finetune.normalise: {settings.normalise} cannot replace {last}: take model")
    return Compose([*steps, Normalize(**_pixels(settings, backbone.preprocessing))])


def _pixels(settings: FineTune, preprocessing: Preprocessing) -> dict[str, tuple[float, ...]]:
    if settings.normalise == "imagenet":
        return {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    return {"mean": preprocessing.mean, "std": preprocessing.std}
