"""Encodes images, words and prompts by a frozen encoder in a predict loop, so that devices and nodes come from the Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from clip_ood.backbones.backbone import Backbone, unit
from clip_ood.backbones.inside import check_inside
from clip_ood.features.batches import Batch, StoredBatch, TextBatch, WordBatch
from clip_ood.model import encode
from clip_ood.outputs import Inside
from clip_ood.texts.prompts import prototypes


class FeatureExtractor(LightningModule):
    """Computes g and h of image batches, and text embeddings of words and prompts.

    `create` loads the encoder; it is called only if the encoder is `needed`, which is known once the data are set up. The encoder
    runs in its own precision, whatever the Trainer's, because features are stored under it. `arrays`: by image set, the names of what
    is wanted of it, layers and patch tokens among them.
    """

    def __init__(
        self,
        create: Callable[[], Backbone],
        needed: Callable[[], bool] = lambda: True,
        arrays: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.create, self.needed = create, needed
        self.inside = {source: Inside.of(names) for source, names in arrays.items()}
        self.backbone: Backbone | None = None

    def setup(self, stage: str) -> None:
        if self.needed():
            self.backbone = self.create()
            for wanted in filter(None, self.inside.values()):
                check_inside(self.backbone.image_tower, wanted, "the encoder")

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Returns arrays by the names under which they are stored.

        Images have features (B, D) and, from encoders that have them, embeddings (B, E), and the layers (B, D_l) and tokens (B, P, E)
        that are wanted of their set; words have features (B, E), the mean of
        their prompts' embeddings; strings and stored features have embeddings (B, E).
        """
        with torch.autocast(self.device.type, enabled=False):
            if isinstance(batch, TextBatch):
                return {"embeddings": self.backbone.encode_text(batch.strings)}
            if isinstance(batch, WordBatch) and batch.raw:
                vectors = self.backbone.text_vectors(batch.strings).float()
                return {"features": unit(vectors.unflatten(0, (-1, batch.num_prompts)).mean(dim=1))}
            if isinstance(batch, WordBatch):
                return {"features": prototypes(self.backbone.encode_text(batch.strings), batch.num_prompts)}
            if isinstance(batch, StoredBatch):
                return {"embeddings": self.backbone.project(batch.features)}
            if not len(batch.images):  # all images are stored already
                return {}
            return dict(encode(self.backbone, batch.images, self.inside.get(batch.part.source, Inside())).tensors())
