"""Writes the encoder's outputs to the feature store, a whole part at a time."""

from __future__ import annotations

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from clip_ood.callbacks.part_writer import PartWriter
from clip_ood.features.batches import Batch, ImageBatch, TextBatch
from clip_ood.features.store import FeatureStore, TextEmbeddings
from clip_ood.features.stored_set import StoredSet
from clip_ood.files.unreadable import Tolerance, TooManyUnreadable


class FeatureWriter(PartWriter):
    """Collects the batches of a part on the device and writes the part when it is whole; prompts go to the store `texts`.

    Raises: StoreError, with the first batch, if the store cannot be written or is too small; TooManyUnreadable, once what is
    there is written, as soon as this process has met more unreadable images of a set than `tolerance` allows.
    """

    def __init__(
        self,
        texts: FeatureStore,
        stored: dict[str, StoredSet],
        strings: list[str],
        tolerance: Tolerance = Tolerance(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        self.texts, self.stored, self.strings, self.tolerance = texts, stored, strings, tolerance
        self._unreadable: dict[str, list[tuple[str, str]]] = {}
        self._checked: set[FeatureStore] = set()

    def see(self, module: LightningModule, batch: Batch, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        if outputs or (isinstance(batch, ImageBatch) and batch.read):
            self._check(batch, outputs)
        if isinstance(batch, ImageBatch):
            batch.images = None  # frees the pixels
            if batch.errors:
                self._count(module, batch, outputs)
        return outputs

    def _count(self, module: LightningModule, batch: ImageBatch, outputs: dict[str, Tensor]) -> None:
        """Counts the unreadable images of the part's next batch."""
        start = sum(len(each.identities) for each, _ in self._found)
        stored, found = self.stored[batch.part.source], self._unreadable.setdefault(batch.part.source, [])
        rows = batch.part.rows[start:]
        found += [(stored.images.names[rows[batch.read[place]]], why) for place, why in batch.errors.items()]
        try:
            self.tolerance.check(f"Image set {stored.name}", len(stored.images), found)
        except TooManyUnreadable:
            self.write(module, [*self._found, (batch, outputs)])
            raise

    def _check(self, batch: Batch, outputs: dict[str, Tensor]) -> None:
        """Checks, before a store's first part is made, that it can be written and has room for everything that is missing in it."""
        store = self.texts if isinstance(batch, TextBatch) else self.stored[batch.part.source].store
        if store in self._checked:
            return
        width = {name: values[0].numel() for name, values in outputs.items() if len(values)}
        values = 0
        if not isinstance(batch, TextBatch):
            for each in self.stored.values():
                if each.store is store and each.arrays:
                    values += len(each.missing()) * sum(width.get(name, 0) for name in each.arrays)
        store.check_writable(values * store.dtype.itemsize)
        self._checked.add(store)

    def write(self, module: LightningModule, found: list[tuple[Batch, dict[str, Tensor]]]) -> None:
        """Writes what was encoded, and then what the part's files were found to hold."""
        batches = [batch for batch, _ in found]
        if isinstance(batches[0], TextBatch):
            embeddings = torch.cat([outputs["embeddings"] for _, outputs in found])
            scale, bias = module.backbone.logit_scale, module.backbone.logit_bias
            self.texts.write_texts(self.strings, TextEmbeddings(embeddings, scale, logit_bias=bias))
            return
        part, stored = batches[0].part, self.stored[batches[0].part.source]
        identities, errors, count = [], {}, 0
        for batch in batches:
            if isinstance(batch, ImageBatch):
                errors |= {count + place: reason for place, reason in batch.errors.items()}
                identities.append(batch.identities[batch.read])
            else:
                identities.append(batch.identities)
            count += len(identities[-1])
        if count:
            given = [outputs for _, outputs in found if outputs]
            names = given[0] if given else ()  # none if images were only read
            arrays = {name: torch.cat([outputs[name] for outputs in given]) for name in names}
            most = max(len(each) for each in identities)
            stored.add(np.concatenate(identities), arrays, errors, most, part.name)
        if isinstance(batches[0], ImageBatch) and batches[0].stamps is not None:
            stamps = np.concatenate([batch.stamps for batch in batches])
            contents = np.concatenate([batch.contents for batch in batches])
            stored.store.files.remember(stamps, contents, part.name)
