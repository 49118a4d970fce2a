"""What the encoder says goes to the feature store, a whole part at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from clip_ood.features.entries import LARGE, Entries
from clip_ood.features.store import FeatureStore, StoredSet, TextEmbeddings
from clip_ood.outputs import Outputs
from datamodules.extraction import Batch, ImageBatch, StoredBatch, TextBatch, WordBatch


class FeatureWriter(Callback):
    """Collects the batches of a part on the device and writes the part when it is whole; prompts go to the store `texts`.

    `written` counts the parts that this process has finished. Small segments become large ones on the way.
    """

    def __init__(self, texts: FeatureStore, stored: dict[str, StoredSet], strings: list[str]) -> None:
        self.texts, self.stored, self.strings = texts, stored, strings
        self.written = 0
        self._rows: list[tuple[ImageBatch | StoredBatch | WordBatch, Outputs]] = []
        self._texts: list[Outputs] = []
        self._small: dict[Path, tuple[Entries, int]] = {}

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Outputs,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if isinstance(batch, TextBatch):
            self._texts.append(outputs)
            if batch.last:
                embeddings = torch.cat([each.embeddings for each in self._texts])
                self.texts.write_texts(self.strings, TextEmbeddings(embeddings, module.backbone.logit_scale))
            return
        if isinstance(batch, ImageBatch):
            batch.images = None  # let go of the pixels
        self._rows.append((batch, outputs))
        if sum(len(each.identities) for each, _ in self._rows) == len(batch.part.rows):
            self._write()
            self._rows.clear()
            self.written += 1

    def _write(self) -> None:
        """Writes the part whose batches are all there: first what was encoded, then what its files were found to hold."""
        batches = [batch for batch, _ in self._rows]
        part, stored = batches[0].part, self.stored[batches[0].part.source]
        identities, errors, count = [], {}, 0
        for batch, _ in self._rows:
            if isinstance(batch, ImageBatch):
                errors |= {count + place: reason for place, reason in batch.errors.items()}
                identities.append(batch.identities[batch.encoded])
            else:
                identities.append(batch.identities)
            count += len(identities[-1])
        if count:
            arrays = {
                key: torch.cat(
                    [getattr(outputs, key) for _, outputs in self._rows if getattr(outputs, key) is not None]
                )
                for key in ("features", "embeddings")
                if any(getattr(outputs, key) is not None for _, outputs in self._rows)
            }
            most = max(len(each) for each in identities)
            self._keep(stored.entries, stored.add(np.concatenate(identities), arrays, errors, most, part.name), count)
        if isinstance(batches[0], ImageBatch) and batches[0].stamps is not None:
            stamps = np.concatenate([batch.stamps for batch in batches])
            found = np.concatenate([batch.identities for batch in batches])
            self._keep(stored.store.files, stored.remember(stamps, found, part.name), len(stamps))

    def _keep(self, entries: Entries, path: Path, count: int) -> None:
        """Merges this process's segments of some entries once they make a large one."""
        self._small[path] = entries, count
        ours = {each: n for each, (of, n) in self._small.items() if of is entries}
        if sum(ours.values()) >= entries.factor * LARGE:
            entries.merge(list(ours))
            self._small = {each: kept for each, kept in self._small.items() if each not in ours}
