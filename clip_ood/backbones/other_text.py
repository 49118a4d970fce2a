"""An encoder whose texts are read by another model: image features stay the same, prompts and words change."""

from __future__ import annotations

from torch import Tensor, nn

from clip_ood.backbones.backbone import Backbone
from clip_ood.backbones.open_clip_backbone import OpenClipBackbone
from clip_ood.outputs import Inside


class OtherText(Backbone):
    """Takes g and h from `images`, and text embeddings and logit scale from `texts`, whose image tower is dropped.

    It is meant for models of one joint space, such as text towers trained against the same frozen image tower.
    """

    has_text = True

    def __init__(self, images: OpenClipBackbone, texts: OpenClipBackbone) -> None:
        super().__init__()
        self.dtype, self.transform, self.preprocessing = images.dtype, images.transform, images.preprocessing
        self.images, self.texts = images, texts.text_side()

    @property
    def logit_scale(self) -> float | None:
        return self.texts.logit_scale

    @property
    def logit_bias(self) -> float | None:
        return self.texts.logit_bias

    @property
    def image_tower(self) -> nn.Module:
        return self.images.image_tower

    @property
    def projection(self) -> nn.Module:
        """The module that turns g into h."""
        return self.images.projection

    def encode_image(self, images: Tensor) -> Tensor:
        return self.images.encode_image(images)

    def encode_inside(self, images: Tensor, wanted: Inside) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        return self.images.encode_inside(images, wanted)

    def project(self, features: Tensor) -> Tensor:
        return self.images.project(features)

    def encode_text(self, texts: list[str]) -> Tensor:
        return self.texts.encode_text(texts)

    def text_vectors(self, texts: list[str]) -> Tensor:
        return self.texts.text_vectors(texts)

    def text_side(self) -> Backbone:
        return self.texts
