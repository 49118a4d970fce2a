"""Tells how wide an encoder's features are and how many numbers it has, from its configuration alone: no weights are read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from clip_ood.backbones.backbone import Backbone
from clip_ood.backbones.inside import check_inside
from clip_ood.backbones.library import library
from clip_ood.backbones.spec import BackboneSpec
from clip_ood.errors import UserError
from clip_ood.outputs import Inside, Outputs

NO_NUMBERS = re.compile(r"\bmeta\b|register_meta", re.IGNORECASE)  # in what torch says of a tensor without numbers


class Unknown(UserError):
    """This is only known once the encoder's weights are loaded."""


@dataclass(frozen=True)
class Shape:
    """The widths of g (D) and h (E, None without a joint space), and how many numbers the image side keeps.

    parameters are those of the image tower, which fine-tuning changes; values are all numbers that its checkpoint keeps: the
    tower's parameters and buffers, and the projection.
    """

    features: int
    embeddings: int | None
    parameters: int
    values: int

    @property
    def width(self) -> int:
        """The number of values that are stored for an image."""
        return self.features + (self.embeddings or 0)


def shapes_inside(spec: BackboneSpec, wanted: Inside) -> dict[str, tuple[int, ...]]:
    """Returns the shape of what is wanted of an image, by its name: (D_l) of a layer, (P, E) of patch tokens; no host is contacted.

    Raises: UserError for layers and tokens that the encoder does not have; as `shape_of` otherwise.
    """
    with _without_numbers(spec) as backbone:
        check_inside(backbone.image_tower, wanted, spec.model)
        _, layers, tokens = backbone.encode_inside(torch.zeros(2, 3, *backbone.preprocessing.size), wanted)
    outputs = Outputs(layers=layers, tokens=tokens)
    return {name: tuple(value.shape[1:]) for name, value in outputs.tensors()}


def shape_of(spec: BackboneSpec) -> Shape:
    """The shape of the encoder that `spec` names; no host is contacted.

    Raises: Unknown, where its configuration is not on this machine, or the encoder computes with numbers that only weights have; what
    its own code raises.
    """
    with _without_numbers(spec) as backbone:
        features = backbone.encode_image(torch.zeros(2, 3, *backbone.preprocessing.size))
        embeddings = backbone.project(features)
    kept = [backbone.image_tower, getattr(backbone, "projection", nn.Identity())]
    return Shape(
        features.shape[1],
        None if embeddings is None else embeddings.shape[1],
        sum(each.numel() for each in backbone.image_tower.parameters()),
        sum(value.numel() for module in kept for value in module.state_dict().values()),
    )


@contextmanager
def _without_numbers(spec: BackboneSpec) -> Iterator[Backbone]:
    """Yields the image side of an encoder on the meta device, where it computes shapes alone. Raises as `shape_of` does."""
    try:
        with torch.device("meta"), torch.inference_mode():
            yield library(spec.library).image_side(spec)
    except (ConnectionError, TypeError, RuntimeError) as error:
        if not (isinstance(error, ConnectionError) or NO_NUMBERS.search(str(error))):
            raise
        raise Unknown(f"the widths of {spec.model} are known only once its weights are loaded") from error
