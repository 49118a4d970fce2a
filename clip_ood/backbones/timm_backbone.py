"""Any timm model as an image-only `Backbone`: g is what its classifier would see."""

from __future__ import annotations

import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from clip_ood.backbones.backbone import Backbone, Preprocessing
from clip_ood.backbones.names import BackboneSpec


class TimmBackbone(Backbone):
    """A timm encoder without its classifier: its default weights, a checkpoint file, or random weights."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec.precision)
        file = spec.pretrained if spec.pretrained != "default" else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.random_seed)
            self.model = timm.create_model(spec.model, pretrained=spec.pretrained == "default", num_classes=0)
        if file:
            self._load(file)
        prepared = resolve_model_data_config(self.model)
        self.transform = create_transform(**prepared, is_training=False)
        self.preprocessing = Preprocessing(
            tuple(prepared["input_size"][1:]),
            tuple(prepared["mean"]),
            tuple(prepared["std"]),
            prepared["interpolation"],
        )
        self.freeze()

    @property
    def image_tower(self) -> nn.Module:
        return self.model

    def encode_image(self, images: Tensor) -> Tensor:
        return self.model(images.to(self.dtype)).float()

    def _load(self, file: str) -> None:
        from timm.models import load_state_dict

        weights = load_state_dict(file, weights_only=True)
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        classifier = self.model.pretrained_cfg.get("classifier") or ()
        heads = [classifier] if isinstance(classifier, str) else classifier
        strange = [name for name in unexpected if name.rpartition(".")[0] not in heads]
        if missing or strange:
            raise ValueError(f"its weights are not this model's: {len(missing)} are missing, unknown are {strange[:3]}")
