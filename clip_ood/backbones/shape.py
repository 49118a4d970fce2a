"""Tells how wide an encoder's features are and how many numbers it has, from its configuration alone: no weights are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from clip_ood.backbones.inside import check_inside
from clip_ood.backbones.library import library
from clip_ood.backbones.spec import BackboneSpec
from clip_ood.errors import UserError
from clip_ood.outputs import NOTHING, Inside, Outputs

NO_NUMBERS = re.compile(r"\bmeta\b|register_meta", re.IGNORECASE)  # in what torch says of a tensor without numbers


class Unknown(UserError):
    """This is only known once the encoder's weights are loaded."""


@dataclass(frozen=True)
class Shape:
    """The widths of g (D) and h (E, None without a joint space), and how many numbers the image side keeps.

    parameters are those of the image tower, which fine-tuning changes; values are all numbers that its checkpoint keeps: the
    tower's parameters and buffers, and the projection; inside: how many numbers a layer or the patch tokens of an image have, by
    their names.
    """

    features: int
    embeddings: int | None
    parameters: int
    values: int
    inside: Mapping[str, int] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """The number of values that are stored for an image."""
        return self.features + (self.embeddings or 0)


def shape_of(spec: BackboneSpec, wanted: Inside = NOTHING) -> Shape:
    """The shape of the encoder that `spec` names, with that of the layers and patch tokens that are wanted; no host is contacted.

    Raises: Unknown, where its configuration is not on this machine, or the encoder computes with numbers that only weights have;
    UserError for layers and tokens that it does not have; what its own code raises.
    """
    try:
        with torch.device("meta"), torch.inference_mode():
            backbone = library(spec.library).image_side(spec)
            check_inside(backbone.image_tower, wanted, spec.model)
            images = torch.zeros(2, 3, *backbone.preprocessing.size)
            features, layers, tokens = backbone.encode_image(images), {}, {}
            if wanted:
                features, layers, tokens = backbone.encode_inside(images, wanted)
            outputs = Outputs(features, backbone.project(features), layers=layers or None, tokens=tokens or None)
    except (ConnectionError, TypeError, RuntimeError) as error:
        if not (isinstance(error, ConnectionError) or NO_NUMBERS.search(str(error))):
            raise
        raise Unknown(f"the widths of {spec.model} are known only once its weights are loaded") from error
    kept = [backbone.image_tower, getattr(backbone, "projection", nn.Identity())]
    return Shape(
        outputs.features.shape[1],
        None if outputs.embeddings is None else outputs.embeddings.shape[1],
        sum(each.numel() for each in backbone.image_tower.parameters()),
        sum(value.numel() for module in kept for value in module.state_dict().values()),
        {name: value[0].numel() for name, value in outputs.tensors() if name in wanted.arrays},
    )
