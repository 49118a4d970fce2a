"""Any open_clip model behind the `Backbone` interface.

The projection into the joint space is taken out of the image tower once, so that the tower itself gives g and the
projection turns g into h. Where there is no projection of its own (RN50's attention pooling), g is the tower's output.
"""

from __future__ import annotations

from typing import Any

import open_clip
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.model import TimmModel
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor, nn

from clip_ood.backbones.backbone import Backbone, Preprocessing, unit
from clip_ood.backbones.names import SCHEMES, BackboneSpec


class OpenClipBackbone(Backbone):
    """An open_clip image-text model: a pretrained tag, `hf-hub:`, `local-dir:`, a checkpoint file or random weights.

    Raises: ValueError where a checkpoint's activation (QuickGELU) is not the architecture's.
    """

    has_text = True

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec.precision)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.random_seed)
            model = open_clip.create_model(
                spec.model,
                pretrained=spec.pretrained,
                require_pretrained=spec.pretrained is not None or spec.model.startswith("hf-hub:"),
                device=torch.get_default_device(),
                force_quick_gelu=uses_quick_gelu(spec),
                force_preprocess_cfg=_preprocessing(spec),
                pretrained_text=False,
            )
        self._tokenize = open_clip.get_tokenizer(spec.model)
        prepared = PreprocessCfg(**model.visual.preprocess_cfg)
        self.transform = image_transform_v2(prepared, is_train=False)
        size = (prepared.size, prepared.size) if isinstance(prepared.size, int) else tuple(prepared.size)
        self.preprocessing = Preprocessing(size, tuple(prepared.mean), tuple(prepared.std), prepared.interpolation)
        self.projection = take_projection(model.visual)
        self.model = model
        self._scale = None if model.logit_scale.is_meta else model.logit_scale.detach().float().exp().item()
        self.freeze()

    @property
    def logit_scale(self) -> float | None:
        return self._scale

    @property
    def image_tower(self) -> nn.Module:
        return self.model.visual

    def encode_image(self, images: Tensor) -> Tensor:
        features = self.model.visual(images.to(self.dtype))
        return (features[0] if isinstance(features, tuple) else features).float()  # CoCa's tower gives tokens as well

    def project(self, features: Tensor) -> Tensor:
        return unit(self.projection(features.to(self.dtype)))

    def train_images(self, gradient_checkpointing: bool = False, compile: bool = False) -> Backbone:
        self.model, self.has_text = nn.ModuleDict({"visual": self.model.visual}), False
        return super().train_images(gradient_checkpointing, compile)

    def encode_text(self, texts: list[str]) -> Tensor:
        tokens = self._tokenize(texts)
        tower = getattr(self.model, "text", None)
        if isinstance(tower, HFTextEncoder):  # it masks padding: drop what all texts share
            tokens = tokens[:, : int((tokens != tower.config.pad_token_id).any(dim=0).nonzero().max()) + 1]
        tokens = tokens.to(next(self.model.parameters()).device)
        embeddings = self.model.encode_text(tokens)
        return unit(embeddings[0] if isinstance(embeddings, tuple) else embeddings)


def architecture(spec: BackboneSpec, backbone: Backbone) -> dict[str, Any]:
    """What an open_clip_config.json says of the model that `spec` names: its architecture and preprocessing."""
    config = open_clip.get_model_config(spec.model)
    if uses_quick_gelu(spec):
        config["quick_gelu"] = True
    return {"model_cfg": config, "preprocess_cfg": backbone.image_tower.preprocess_cfg}


class MatrixProjection(nn.Module):
    """g -> g P, as ViT towers keep their projection: a bare (D, E) parameter."""

    def __init__(self, matrix: nn.Parameter) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.matrix


def take_projection(visual: nn.Module) -> nn.Module:
    """The projection of an open_clip image tower, taken out of it: the tower gives g from then on."""
    if isinstance(visual, TimmModel):
        return _take_from_timm(visual)
    if isinstance(getattr(visual, "proj", None), nn.Parameter):  # VisionTransformer
        projection = MatrixProjection(visual.proj)
        visual.proj = None
        return projection
    return nn.Identity()  # ModifiedResNet: attention pooling is the last layer


def _take_from_timm(visual: TimmModel) -> nn.Module:
    for name in ("proj", "mlp"):
        if name in visual.head._modules:
            return visual.head._modules.pop(name)
    if len(visual.head) == 0 and isinstance(classifier := visual.trunk.get_classifier(), nn.Linear):
        visual.trunk.reset_classifier(0)  # the trunk's classifier served as the projection
        return classifier
    return nn.Identity()


def uses_quick_gelu(spec: BackboneSpec) -> bool:
    """Whether QuickGELU is to be forced: the weights that `spec` names were trained with it.

    Raises: ValueError for a -quickgelu architecture with weights that were not.
    """
    if spec.model.startswith(SCHEMES):
        return False  # the folder's or repository's own config says it
    tag = training_tag(spec)
    trained_with = bool(tag.get("quick_gelu")) if tag else spec.model.endswith("-quickgelu")
    if spec.model.endswith("-quickgelu") and not trained_with:
        plain = spec.model.removesuffix("-quickgelu")
        raise ValueError(
            f"{spec.preprocess or spec.pretrained} was trained with GELU, not QuickGELU: use model {plain}"
        )
    return trained_with


def training_tag(spec: BackboneSpec) -> dict[str, Any]:
    """What open_clip knows of the pretrained tag that `spec` names: mean, std, resizing, activation; {} without a tag."""
    name = spec.preprocess or spec.pretrained
    if name is None or spec.model.startswith(SCHEMES):
        return {}
    return get_pretrained_cfg(spec.model, name) or get_pretrained_cfg(spec.model.removesuffix("-quickgelu"), name)


def _preprocessing(spec: BackboneSpec) -> dict[str, Any] | None:
    """mean, std, interpolation and resizing of a checkpoint file's stated tag; None where open_clip knows them."""
    if not spec.preprocess:
        return None
    tag = training_tag(spec)
    return {key: tag[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in tag}
