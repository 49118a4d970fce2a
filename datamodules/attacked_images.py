"""Loads OOD images at the encoder's input size for a predict loop that attacks them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clip_ood.adversarial.images import PairBatch
from clip_ood.data.image_list import ImageList
from clip_ood.datamodules.parts_data import PartsData


class AttackedImages(Dataset):
    """Maps (variant, positions) to the images of those pairs, resized and cropped as the encoder expects them."""

    def __init__(self, images: ImageList, rows: Sequence[int], pixels: Callable[[Image.Image], Tensor]) -> None:
        self.images, self.rows, self.pixels = images, rows, pixels

    def __getitem__(self, batch: tuple[str, range]) -> PairBatch:
        variant, positions = batch
        read = [self.pixels(self.images.read(self.rows[position])) for position in positions]
        return PairBatch(torch.stack(read), positions, variant)


class AttackData(PartsData):
    """Loads the `pending` batches (variant, positions), each of which is a part.

    `pixels` returns the transform that makes an encoder's images, if any batch is pending.
    """

    def __init__(
        self,
        images: ImageList,
        rows: Sequence[int],
        pending: Callable[[], list[tuple[str, range]]],
        pixels: Callable[[], Callable[[Image.Image], Tensor]],
        workers: int | None,
    ) -> None:
        super().__init__(pending, workers)
        self.images, self.rows, self.pixels = images, rows, pixels

    def predict_dataloader(self) -> DataLoader | list[DataLoader]:
        if not self.parts:
            return []
        dataset = AttackedImages(self.images, self.rows, self.pixels())
        blank = dataset.pixels(Image.new("RGB", (256, 256)))
        return self.loader(dataset, self.mine, max(len(positions) for _, positions in self.parts) * blank.nbytes)

    def transfer_batch_to_device(self, batch: PairBatch, device: torch.device, dataloader_idx: int) -> PairBatch:
        return PairBatch(batch.pixels.to(device), batch.positions, batch.variant)
