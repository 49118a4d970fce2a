"""Loads new images for a predict loop, in parts that are whole or not there, so that a killed run continues where it was.

A part is a number of consecutive batches of the inputs. Parts are dealt to the devices in turn, so that the content of a batch
does not depend on the number of devices.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator

import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clip_ood.config.shard import WHOLE, Shard
from clip_ood.data.fetched_ahead import fetched_ahead
from clip_ood.data.inputs import Source
from clip_ood.datamodules.workers import loading
from clip_ood.detect.batches import NewImageBatch, SourceBatch
from clip_ood.detect.part_batches import IsWhole, part_batches
from clip_ood.detect.prepared import prepare
from clip_ood.features.identity import SIZE, pairs


class Pictures(Dataset):
    """Maps a batch of sources to their pictures as tensors, with zeros and the reason for one that cannot be read."""

    def __init__(self, transform: Callable[[Image.Image], Tensor]) -> None:
        self.transform = transform
        self.blank = torch.zeros_like(transform(Image.new("RGB", (256, 256))))

    def __getitem__(self, batch: SourceBatch) -> NewImageBatch:
        errors = {place: each.reason for place, each in enumerate(batch.sources) if each.reason is not None}
        places = [place for place in range(len(batch.sources)) if place not in errors]
        wanted = fetched_ahead(batch.sources[place] for place in places)
        loaded = [self._load(each, place, errors) for place, each in zip(places, wanted, strict=True)]
        tensors, contents = zip(*loaded, strict=True) if loaded else ((), ())
        return NewImageBatch(torch.stack(tensors) if tensors else None, batch, errors, pairs(contents))

    def _load(self, source: Source, place: int, errors: dict[int, str]) -> tuple[Tensor, bytes]:
        found = prepare(source.read, self.transform)
        if not isinstance(found, str):
            return found
        errors[place] = found
        return self.blank, bytes(SIZE)


class NewImages(LightningDataModule):
    """Loads the parts of some inputs that are not whole yet, for `Trainer.predict`.

    `inputs` starts the sources again; a part has `per_part` batches of `batch_size` images; `is_whole(part, sources)` says
    whether it is there. Of several shards, each has every n-th part. `parts` is the number of all, once all inputs were seen.
    """

    parts: int | None = None

    def __init__(
        self,
        inputs: Callable[[], Iterable[Source]],
        is_whole: IsWhole,
        transform: Callable[[Image.Image], Tensor],
        batch_size: int,
        per_part: int,
        workers: int | None,
        shard: Shard = WHOLE,
    ) -> None:
        super().__init__()
        self.inputs, self.is_whole, self.batch_size = inputs, is_whole, batch_size
        self.transform, self.per_part, self.workers, self.shard = transform, per_part, workers, shard

    def predict_dataloader(self) -> DataLoader:
        dataset = Pictures(self.transform)
        size = self.batch_size * dataset.blank.nbytes
        return DataLoader(dataset, sampler=self.batches(), batch_size=None, **loading(self.trainer, self.workers, size))

    def batches(self) -> Iterable[SourceBatch]:
        """Returns the batches of this device and shard whose parts are not whole."""
        kind = _Batches if self.per_part > 1 else _Stream
        return kind(self, self.trainer.global_rank, self.trainer.world_size)

    def transfer_batch_to_device(
        self, batch: NewImageBatch, device: torch.device, dataloader_idx: int
    ) -> NewImageBatch:
        if batch.images is not None:
            batch.images = batch.images.to(device, non_blocking=True)
        return batch


class _Batches:
    """The batches of this device and shard; their number is known only at the end."""

    def __init__(self, data: NewImages, rank: int, world: int) -> None:
        self.data, self.rank, self.world = data, rank, world

    def __iter__(self) -> Iterator[SourceBatch]:
        data, (shard, of) = self.data, self.data.shard
        rank, world = shard * self.world + self.rank, of * self.world
        joins = rank == 0 and of == 1
        data.parts = yield from part_batches(
            data.inputs(), data.batch_size, data.per_part, data.is_whole, rank, world, joins
        )


class _Stream(_Batches):
    """Batches that are judged as they come; if they had a length, Lightning would wait for the next one first."""

    def __len__(self) -> int:
        return sys.maxsize
