"""What the encoder says goes to the feature store, a whole chunk at a time."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from clip_ood.features.store import FeatureStore, StoredSet, TextEmbeddings
from clip_ood.outputs import Outputs
from datamodules.extraction import ImageBatch, TextBatch, WordBatch


class FeatureWriter(Callback):
    """Collects the batches of a chunk on the device and writes the chunk when it is whole; prompts go to the store `texts`."""

    def __init__(self, texts: FeatureStore, stored: dict[str, StoredSet], strings: list[str]) -> None:
        self.texts, self.stored, self.strings = texts, stored, strings
        self._rows: list[tuple[ImageBatch | WordBatch, Outputs]] = []
        self._texts: list[Outputs] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Outputs,
        batch: ImageBatch | WordBatch | TextBatch,
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
        self._write_if_whole()

    def _write_if_whole(self) -> None:
        batches = [batch for batch, _ in self._rows]
        stored = self.stored[batches[0].source]
        chunk = stored.chunk_of(batches[0].rows[0])
        rows = stored.rows(chunk)
        if sum(len(batch.rows) for batch in batches) < len(rows):
            return
        features = torch.cat([outputs.features for _, outputs in self._rows]).cpu()
        has_embeddings = self._rows[0][1].embeddings is not None
        embeddings = torch.cat([o.embeddings for _, o in self._rows]).cpu() if has_embeddings else None
        unreadable = [batch.errors for batch in batches if isinstance(batch, ImageBatch)]
        errors = {row - rows.start: reason for found in unreadable for row, reason in found.items()}
        stored.write(chunk, features, embeddings, errors, max(len(batch.rows) for batch in batches))
        self._rows.clear()
