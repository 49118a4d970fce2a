"""OOD images at the encoder's input size, as the loader of a predict loop that attacks them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize
from torchvision.transforms.functional import center_crop, normalize, to_pil_image

from clip_ood.backbones.backbone import Backbone
from clip_ood.data.image_list import ImageList
from clip_ood.data.workers import loading


@dataclass(frozen=True)
class PairBatch:
    """Pixels (B, 3, H, W) in [0, 1] of the pairs at `positions`, for the attack called `variant`."""

    pixels: Tensor
    positions: range
    variant: str


class AttackedImages(Dataset):
    """(variant, positions) -> the images of those pairs, resized and cropped as the encoder wants them."""

    def __init__(self, images: ImageList, rows: Sequence[int], pixels: Callable[[Image.Image], Tensor]) -> None:
        self.images, self.rows, self.pixels = images, rows, pixels

    def __getitem__(self, batch: tuple[str, range]) -> PairBatch:
        variant, positions = batch
        read = [self.pixels(self.images.read(self.rows[position])) for position in positions]
        return PairBatch(torch.stack(read), positions, variant)


class AttackData(LightningDataModule):
    """The batches (variant, positions) that are `pending`, dealt to the devices like cards."""

    def __init__(
        self,
        images: ImageList,
        rows: Sequence[int],
        pending: Callable[[], list[tuple[str, range]]],
        workers: int | None,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer batches than devices
        self.images, self.rows, self.pending, self.workers = images, rows, pending, workers

    def setup(self, stage: str) -> None:
        self.batches = self.trainer.strategy.broadcast(self.pending())  # as the first process sees them

    def predict_dataloader(self) -> DataLoader | list[DataLoader]:
        if not self.batches:
            return []
        mine = self.batches[self.trainer.global_rank :: self.trainer.world_size]
        dataset = AttackedImages(self.images, self.rows, pixels_of(self.trainer.lightning_module.backbone))
        blank = dataset.pixels(Image.new("RGB", (256, 256)))
        size = max((len(positions) for _, positions in self.batches), default=0) * blank.nbytes
        return DataLoader(dataset, sampler=mine, batch_size=None, **loading(self.trainer, self.workers, size))

    def transfer_batch_to_device(self, batch: PairBatch, device: torch.device, dataloader_idx: int) -> PairBatch:
        return PairBatch(batch.pixels.to(device), batch.positions, batch.variant)


def pixels_of(backbone: Backbone) -> Callable[[Image.Image], Tensor]:
    """What of an encoder's transform comes before the last step, which takes pixels in [0, 1] to mean 0 and deviation 1.

    Where it resizes to S and then cuts out less, the square of S × S is kept: the encoder cuts out the rest by itself, now
    and when it reads the saved image, which it sees exactly as it was attacked.
    Raises: ValueError for a transform that ends otherwise, or changes a saved image.
    """
    *steps, last = backbone.transform.transforms
    if not isinstance(last, Normalize):
        raise ValueError(
            f"An attack needs an encoder whose transform ends with Normalize, not with {last}: take open_clip's"
        )
    side = min((step.size for step in steps if isinstance(step, Resize) and isinstance(step.size, int)), default=0)
    cut = [isinstance(step, CenterCrop) and min(step.size) < side for step in steps]
    pixels = Compose([CenterCrop(side) if wide else step for step, wide in zip(steps, cut, strict=True)])
    _check_seen_again(backbone, pixels)
    return pixels


def cut_out(pixels: Tensor, backbone: Backbone) -> Tensor:
    """The middle (B, 3, H, W) of pixels that the encoder sees, mean 0 and deviation 1."""
    prepared = backbone.preprocessing
    return normalize(center_crop(pixels, list(prepared.size)), prepared.mean, prepared.std)


def _check_seen_again(backbone: Backbone, pixels: Callable[[Image.Image], Tensor]) -> None:
    drawn = torch.randint(256, (301, 400, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    saved = to_pil_image(pixels(Image.fromarray(drawn.numpy())))
    seen, attacked = backbone.transform(saved), cut_out(pixels(saved)[None], backbone)[0]
    if seen.shape != attacked.shape or not torch.allclose(seen, attacked, atol=1e-5):
        raise ValueError(
            f"An attack needs an encoder that sees a saved image as it was attacked, and {backbone.transform} changes it: "
            "take one that resizes and cuts out the middle"
        )
