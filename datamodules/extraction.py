"""Images, words and prompts that the feature store does not hold yet, as the loader of a predict loop.

Chunks are dealt to the devices like cards; a batch never crosses a chunk, so that features do not depend on how many
devices there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clip_ood.features.store import StoredSet
from clip_ood.prompts import Phrases, fill
from clip_ood.reading import UnreadableImage
from datamodules.image_list import ImageList


@dataclass(frozen=True)
class Rows:
    """Some rows of a set of images or words."""

    source: str
    rows: range


@dataclass
class ImageBatch:
    """Images (B, 3, H, W) of one chunk; `errors` tells, by row of the set, which could not be read (zeros) and why."""

    images: Tensor
    source: str
    rows: range
    errors: dict[int, str]

    def pin_memory(self) -> ImageBatch:
        self.images = self.images.pin_memory()
        return self


@dataclass
class WordBatch:
    """The prompts of some words of one chunk, all of the first word first."""

    strings: list[str]
    num_prompts: int
    source: str
    rows: range


@dataclass
class TextBatch:
    """Strings for the text encoder, and whether they are the last ones."""

    strings: list[str]
    last: bool


class Batches(Dataset):
    """Rows of one image set -> images as tensors, zeros and the reason where one is damaged; rows of words -> their
    prompts filled in; prompts as they are.

    Raises: OSError for a file that cannot be had (gone, not permitted): that says nothing of its content.
    """

    def __init__(
        self, images: dict[str, ImageList], words: dict[str, Phrases], transform: Callable[[Image.Image], Tensor]
    ) -> None:
        self.images, self.words = images, words
        self.transform = transform
        self.blank = torch.zeros_like(transform(Image.new("RGB", (256, 256))))

    def __getitem__(self, batch: Rows | TextBatch) -> ImageBatch | WordBatch | TextBatch:
        if isinstance(batch, TextBatch):
            return batch
        if phrases := self.words.get(batch.source):
            strings = fill(phrases.prompts, phrases.words[batch.rows.start : batch.rows.stop])
            return WordBatch(strings, len(phrases.prompts), batch.source, batch.rows)
        errors: dict[int, str] = {}
        tensors = [self._tensor(self.images[batch.source], row, errors) for row in batch.rows]
        return ImageBatch(torch.stack(tensors), batch.source, batch.rows, errors)

    def _tensor(self, images: ImageList, row: int, errors: dict[int, str]) -> Tensor:
        try:
            return self.transform(images.read(row))
        except UnreadableImage as error:
            errors[row] = str(error)
            return self.blank


class ExtractionData(LightningDataModule):
    """The pending chunks of sets of images and words and the pending prompts, for `Trainer.predict`.

    `stored` is keyed by set name, as are `images` and `words`; `strings` are prompts whose embeddings are missing. The first process
    looks what is pending, for all: another run may be filling the same store.
    """

    def __init__(
        self,
        images: dict[str, ImageList],
        stored: dict[str, StoredSet],
        strings: list[str],
        batch_size: int,
        num_workers: int | None,
        words: dict[str, Phrases] | None = None,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer chunks than devices
        self.images, self.stored, self.strings, self.words = images, stored, strings, words or {}
        self.batch_size, self.num_workers = batch_size, num_workers

    @property
    def needs_encoder(self) -> bool:
        """Whether anything is pending, on any device."""
        return bool(self.strings or self.pending)

    def setup(self, stage: str) -> None:
        pending = [(name, chunk) for name, stored in self.stored.items() for chunk in stored.pending()]
        self.pending, self.strings = self.trainer.strategy.broadcast((pending, self.strings))

    def predict_dataloader(self) -> list[DataLoader]:
        if not self.needs_encoder:
            return []
        rank, world = self.trainer.global_rank, self.trainer.world_size
        batches = [*self._rows(self.pending[rank::world]), *(self._texts() if rank == 0 else [])]
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        workers = self.num_workers if self.num_workers is not None else default_workers(on_gpu)
        dataset = Batches(self.images, self.words, self.trainer.lightning_module.backbone.transform)
        return [DataLoader(dataset, sampler=batches, batch_size=None, num_workers=workers, pin_memory=on_gpu)]

    def transfer_batch_to_device(self, batch, device: torch.device, dataloader_idx: int):
        if isinstance(batch, ImageBatch):
            batch.images = batch.images.to(device, non_blocking=True)
        return batch

    def _texts(self) -> Iterator[TextBatch]:
        steps = range(0, len(self.strings), self.batch_size)
        for start in steps:
            yield TextBatch(self.strings[start : start + self.batch_size], last=start == steps[-1])

    def _rows(self, chunks: list[tuple[str, int]]) -> Iterator[Rows]:
        for name, chunk in chunks:
            rows = self.stored[name].rows(chunk)
            prompts = len(self.words[name].prompts) if name in self.words else 1
            step = max(1, self.batch_size // prompts)
            for start in range(0, len(rows), step):
                yield Rows(name, rows[start : start + step])


def default_workers(on_gpu: bool) -> int:
    """Decoding processes a device: none beside an encoder on the CPU, which uses every core itself."""
    return min(8, os.cpu_count() or 1) if on_gpu else 0
