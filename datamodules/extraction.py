"""Loads images, words and prompts that the feature store does not hold yet, for a predict loop.

The first process divides what is missing into parts, in set order. The parts are dealt to the devices in turn, and a batch
never crosses a part, so that features do not depend on the number of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from uuid import uuid4

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clip_ood.data.image_list import ImageList, Loaded
from clip_ood.datamodules.parts_data import PartsData
from clip_ood.features import store
from clip_ood.features.batches import Batch, ImageBatch, Part, PartRows, StoredBatch, TextBatch, WordBatch
from clip_ood.features.identity import firsts, pairs
from clip_ood.features.stored_set import StoredSet
from clip_ood.files.pictures import UnreadableImage
from clip_ood.files.unreadable import NO_MEMORY, is_no_memory
from clip_ood.texts.prompts import Phrases, fill

SMALLER = 8  # times fewer images make a part if their patches are stored
HELD = 16  # images of a batch whose files are in memory at the same time


class Batches(Dataset):
    """Maps rows of an image set to images as tensors, with zeros and the reason for a damaged one.

    Images whose content is stored already are left out, and images of a set of which no array is wanted are only decoded. Rows of
    words become their filled prompts; prompts stay as they are. Without `transform`, no image may be wanted as a tensor.

    Raises: OSError for a file that cannot be read (missing, not permitted), which says nothing about its content.
    """

    def __init__(
        self,
        images: dict[str, ImageList],
        words: dict[str, Phrases],
        stored: dict[str, StoredSet],
        transform: Callable[[Image.Image], Tensor] | None,
    ) -> None:
        self.images, self.words, self.transform = images, words, transform
        self.entries = {name: each.entries for name, each in stored.items()}
        self.arrays = {name: each.arrays for name, each in stored.items()}
        self.blank = torch.empty(0) if transform is None else torch.zeros_like(transform(Image.new("RGB", (256, 256))))

    def __getitem__(self, batch: PartRows | TextBatch) -> Batch:
        if isinstance(batch, TextBatch):
            return batch
        if phrases := self.words.get(batch.part.source):
            strings = fill(phrases.prompts, [phrases.words[row] for row in batch.rows])
            return WordBatch(strings, len(phrases.prompts), phrases.raw, batch.part, batch.identities, batch.last)
        if batch.identities is not None:
            rows = self.entries[batch.part.source].rows(batch.identities, ["features"])["features"]
            return StoredBatch(rows.take(torch.arange(len(rows))), batch.part, batch.identities, batch.last)
        return self._images(batch.part, batch.rows.tolist(), batch.last)

    def _images(self, part: Part, rows: list[int], last: bool) -> ImageBatch:
        all_loaded: list[Loaded] = []
        read, tensors, errors, met = [], [], {}, set()
        prepare = self.transform if self.arrays[part.source] else _drop
        loads = self.images[part.source].loads(rows)
        while loaded := list(islice(loads, HELD)):
            there = self._stored(part.source, [each.identity for each in loaded])
            for each, is_there in zip(loaded, there, strict=True):
                if not is_there and each.identity not in met:
                    tensors.append(self._tensor(each, prepare, len(read), errors))
                    read.append(len(all_loaded))
                met.add(each.identity)
                all_loaded.append(replace(each, picture=None))  # frees its bytes
        images = torch.stack(tensors) if tensors and prepare is not _drop else self.blank[None][:0]
        identities = pairs([each.identity for each in all_loaded])
        if all_loaded[0].stamp is None:
            return ImageBatch(images, part, read, identities, None, None, errors, last)
        contents, stamps = (pairs([getattr(each, kind) for each in all_loaded]) for kind in ("content", "stamp"))
        return ImageBatch(images, part, read, identities, contents, stamps, errors, last)

    def _stored(self, source: str, identities: list[bytes]) -> np.ndarray:
        return self.entries[source].has(pairs(identities), [*self.arrays[source], "valid"])

    def _tensor(
        self, loaded: Loaded, prepare: Callable[[Image.Image], Tensor], place: int, errors: dict[int, str]
    ) -> Tensor:
        try:
            return prepare(loaded.picture())
        except UnreadableImage as error:
            errors[place] = str(error)
        except (MemoryError, RuntimeError) as error:
            if not is_no_memory(error):
                raise
            errors[place] = NO_MEMORY
        return self.blank


def _drop(picture: Image.Image) -> Tensor:
    """Returns an empty tensor for a picture that could be read."""
    return torch.empty(0)


class ExtractionData(PartsData):
    """Loads the missing entries of sets of images and words and the missing prompts, for `Trainer.predict`.

    `stored` is keyed by set name, as are `images` and `words`; for an image that is in several sets, what the first of them wants
    is made. `strings` are prompts whose embeddings are missing; `transform` returns the encoder's transform, if it is needed.
    """

    def __init__(
        self,
        images: dict[str, ImageList],
        stored: dict[str, StoredSet],
        strings: list[str],
        transform: Callable[[], Callable[[Image.Image], Tensor]],
        batch_size: int,
        workers: int | None,
        words: dict[str, Phrases] | None = None,
    ) -> None:
        super().__init__(self._parts, workers)
        self.images, self.stored, self.strings, self.words = images, stored, strings, words or {}
        self.transform, self.batch_size = transform, batch_size

    @property
    def is_missing(self) -> bool:
        """Says whether anything is missing, on any device."""
        return bool(self.strings or self.parts)

    @property
    def images_of_this_process(self) -> int:
        """Returns how many images this process encodes."""
        return sum(len(part.rows) for part in self.mine if part.source in self.images)

    @property
    def needs_encoder(self) -> bool:
        """Says whether any of it must be encoded, which is not so if images are only to be read."""
        return bool(self.strings) or any(self.stored[part.source].arrays for part in self.parts)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.strings = self.trainer.strategy.broadcast(self.strings)

    def _parts(self) -> Iterator[Part]:
        """Yields what is missing, with each image once, whatever sets and folders it is known to be in."""
        run, number = uuid4().hex[:8], 0
        for name, missing in self._missing_once().items():
            stored = self.stored[name]
            known = missing if name in self.words else stored.derivable(missing)
            size = store.PART // (SMALLER if any(each.startswith("tokens.") for each in stored.arrays) else 1)
            for rows, are_known in ((np.setdiff1d(missing, known), False), (known, True)):
                for start in range(0, len(rows), size):
                    some = rows[start : start + size]
                    yield Part(name, f"{run}-{number:07d}-", some, stored.identities_of(some) if are_known else None)
                    number += 1

    def _missing_once(self) -> dict[str, np.ndarray]:
        missing = {name: stored.missing() for name, stored in self.stored.items()}
        if not missing:
            return {}
        identities = np.concatenate([self.stored[name].identities_of(rows) for name, rows in missing.items()])
        is_first = np.zeros(len(identities), bool)
        is_first[firsts(identities)] = True
        ends = np.cumsum([len(rows) for rows in missing.values()])[:-1]
        kept = np.split(is_first, ends)
        return {name: rows[first] for (name, rows), first in zip(missing.items(), kept, strict=True)}

    def predict_dataloader(self) -> list[DataLoader]:
        if not self.is_missing:
            return []
        batches = [*self._batches(self.mine), *(self._texts() if self.trainer.is_global_zero else [])]
        transform = self.transform() if self.needs_encoder else None
        dataset = Batches(self.images, self.words, self.stored, transform)
        return [self.loader(dataset, batches, self.batch_size * dataset.blank.nbytes)]

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        if isinstance(batch, ImageBatch):
            batch.images = batch.images.to(device, non_blocking=True)
        if isinstance(batch, StoredBatch):
            batch.features = batch.features.to(device)
        return batch

    def _texts(self) -> Iterator[TextBatch]:
        steps = range(0, len(self.strings), self.batch_size)
        for start in steps:
            yield TextBatch(self.strings[start : start + self.batch_size], last=start == steps[-1])

    def _batches(self, parts: list[Part]) -> Iterator[PartRows]:
        for part in parts:
            prompts = len(self.words[part.source].prompts) if part.source in self.words else 1
            step = max(1, self.batch_size // prompts)
            for start in range(0, len(part.rows), step):
                yield part.batch(start, step)
