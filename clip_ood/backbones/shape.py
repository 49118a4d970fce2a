"""How wide an encoder's features are and how many numbers it has, by its configuration alone: no weights are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from clip_ood.backbones.backbone import Backbone
from clip_ood.backbones.names import BackboneSpec
from clip_ood.backbones.open_clip_files import describe, without_text
from clip_ood.backbones.spec import ImageSpec
from clip_ood.backbones.weights import CONFIG
from clip_ood.errors import UserError


class Unknown(UserError):
    """What is only known once an encoder's weights are loaded."""


@dataclass(frozen=True)
class Shape:
    """The widths of g (D) and h (E, None without a joint space), and how many numbers the image side keeps.

    parameters are those of the image tower, which fine-tuning changes; values are all that its checkpoint keeps: the tower's
    parameters and buffers, and the projection.
    """

    features: int
    embeddings: int | None
    parameters: int
    values: int

    @property
    def width(self) -> int:
        """Numbers that are stored of an image."""
        return self.features + (self.embeddings or 0)


def shape_of(spec: BackboneSpec) -> Shape:
    """The shape of the encoder that `spec` names; no host is contacted. Raises: Unknown, where its configuration does not tell."""
    try:
        with torch.device("meta"), torch.inference_mode():
            backbone = image_side(spec)
            features = backbone.encode_image(torch.zeros(2, 3, *backbone.preprocessing.size))
            embeddings = backbone.project(features)
    except (ConnectionError, NotImplementedError, RuntimeError) as error:  # not in the cache; reads numbers as it runs
        raise Unknown(f"the widths of {spec.model} are known only once its weights are loaded") from error
    kept = [backbone.image_tower, getattr(backbone, "projection", nn.Identity())]
    return Shape(
        features.shape[1],
        None if embeddings is None else embeddings.shape[1],
        sum(each.numel() for each in backbone.image_tower.parameters()),
        sum(value.numel() for module in kept for value in module.state_dict().values()),
    )


def image_side(spec: BackboneSpec) -> Backbone:
    """The image tower and projection of an encoder with random weights, on the current default device. Raises: ConnectionError where
    its configuration is not on this machine."""
    if spec.library == "timm":
        from clip_ood.backbones.timm_backbone import TimmBackbone

        return TimmBackbone(ImageSpec("timm", spec.model, precision=spec.precision))
    from clip_ood.backbones.open_clip_backbone import OpenClipBackbone

    described = without_text(describe(spec, download=False))
    with TemporaryDirectory() as place:
        Path(place, CONFIG).write_text(json.dumps(described, default=list), encoding="utf-8")
        return OpenClipBackbone(ImageSpec("open_clip", f"local-dir:{place}", precision=spec.precision), download=False)
