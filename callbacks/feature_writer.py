"""What the encoder says goes to the feature store, a whole chunk at a time."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from clip_ood.features.store import FeatureStore, StoredSet, TextEmbeddings
from clip_ood.outputs import Outputs
from datamodules.extraction import ImageBatch, TextBatch


class FeatureWriter(Callback):
    """Collects the batches of a chunk on the device and writes the chunk when it is whole."""

    def __init__(self, store: FeatureStore, stored: dict[str, StoredSet], strings: list[str]) -> None:
        self.store, self.stored, self.strings = store, stored, strings
        self._images: list[tuple[ImageBatch, Outputs]] = []
        self._texts: list[Outputs] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Outputs,
        batch: ImageBatch | TextBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if isinstance(batch, TextBatch):
            self._texts.append(outputs)
            if batch.last:
                embeddings = torch.cat([each.embeddings for each in self._texts])
                self.store.write_texts(self.strings, TextEmbeddings(embeddings, module.backbone.logit_scale))
            return
        batch.images = None  # let go of the pixels
        self._images.append((batch, outputs))
        self._write_if_whole()

    def _write_if_whole(self) -> None:
        batches = [batch for batch, _ in self._images]
        stored = self.stored[batches[0].source]
        chunk = stored.chunk_of(batches[0].rows[0])
        rows = stored.rows(chunk)
        if sum(len(batch.rows) for batch in batches) < len(rows):
            return
        features = torch.cat([outputs.features for _, outputs in self._images]).cpu()
        has_embeddings = self._images[0][1].embeddings is not None
        embeddings = torch.cat([o.embeddings for _, o in self._images]).cpu() if has_embeddings else None
        errors = {row - rows.start: reason for batch in batches for row, reason in batch.errors.items()}
        stored.write(chunk, features, embeddings, errors, max(len(batch.rows) for batch in batches))
        self._images.clear()
