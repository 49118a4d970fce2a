"""Images and prompts through a frozen encoder: a predict loop, so that devices and nodes come from the Trainer."""

from __future__ import annotations

from lightning.pytorch import LightningModule

from clip_ood.backbones.backbone import Backbone
from clip_ood.outputs import Outputs
from datamodules.extraction import ImageBatch, TextBatch


class FeatureExtractor(LightningModule):
    """g and h of image batches, text embeddings of prompt batches."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def predict_step(self, batch: ImageBatch | TextBatch, batch_idx: int, dataloader_idx: int = 0) -> Outputs:
        """Images give features (B, D) and embeddings (B, E) or None; strings give embeddings (K, E)."""
        if isinstance(batch, TextBatch):
            return Outputs(embeddings=self.backbone.encode_text(batch.strings))
        features = self.backbone.encode_image(batch.images)
        return Outputs(features=features, embeddings=self.backbone.project(features))
