"""OOD images at the encoder's input size, as the loader of a predict loop that attacks them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clip_ood.adversarial.images import PairBatch
from clip_ood.data.image_list import ImageList
from clip_ood.datamodules.workers import loading


class AttackedImages(Dataset):
    """(variant, positions) -> the images of those pairs, resized and cropped as the encoder wants them."""

    def __init__(self, images: ImageList, rows: Sequence[int], pixels: Callable[[Image.Image], Tensor]) -> None:
        self.images, self.rows, self.pixels = images, rows, pixels

    def __getitem__(self, batch: tuple[str, range]) -> PairBatch:
        variant, positions = batch
        read = [self.pixels(self.images.read(self.rows[position])) for position in positions]
        return PairBatch(torch.stack(read), positions, variant)


class AttackData(LightningDataModule):
    """The batches (variant, positions) that are `pending`, dealt to the devices like cards; `pixels` gives what an encoder's images
    are made by, where any are pending."""

    def __init__(
        self,
        images: ImageList,
        rows: Sequence[int],
        pending: Callable[[], list[tuple[str, range]]],
        pixels: Callable[[], Callable[[Image.Image], Tensor]],
        workers: int | None,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer batches than devices
        self.images, self.rows, self.pending, self.pixels, self.workers = images, rows, pending, pixels, workers

    def setup(self, stage: str) -> None:
        self.batches = self.trainer.strategy.broadcast(self.pending())  # as the first process sees them

    def predict_dataloader(self) -> DataLoader | list[DataLoader]:
        if not self.batches:
            return []
        mine = self.batches[self.trainer.global_rank :: self.trainer.world_size]
        dataset = AttackedImages(self.images, self.rows, self.pixels())
        blank = dataset.pixels(Image.new("RGB", (256, 256)))
        size = max((len(positions) for _, positions in self.batches), default=0) * blank.nbytes
        return DataLoader(dataset, sampler=mine, batch_size=None, **loading(self.trainer, self.workers, size))

    def transfer_batch_to_device(self, batch: PairBatch, device: torch.device, dataloader_idx: int) -> PairBatch:
        return PairBatch(batch.pixels.to(device), batch.positions, batch.variant)
