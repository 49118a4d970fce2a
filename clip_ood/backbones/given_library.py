"""Features that are given: what stands for an encoder that is not loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from clip_ood.backbones.backbone import Backbone, Preprocessing
from clip_ood.backbones.library import Library
from clip_ood.backbones.spec import BackboneSpec
from clip_ood.errors import UserError

NO_ENCODER = (
    "This run's features were given, so that nothing makes such features of images: in Python, load(RUN)(features) judges an array "
    "(N, D) of them"
)
OTHERS = {"pretrained": None, "preprocess": None, "pooling": "default", "image_size": None, "text_spec": None}


class GivenFeatures(Backbone):
    """Takes features (N, D) for images, and gives them back. Raises: UserError for images."""

    def __init__(self, precision: str) -> None:
        super().__init__(precision)
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)  # says on which device it is

    def transform(self, image: Image) -> Tensor:
        raise UserError(NO_ENCODER)

    @property
    def preprocessing(self) -> Preprocessing:
        raise UserError(NO_ENCODER)

    @property
    def image_tower(self) -> nn.Module:
        raise UserError(NO_ENCODER)

    def encode_image(self, images: Tensor) -> Tensor:
        return images.float()


class Given(Library):
    """No package: `model` is only a name, by which runs on features of the same encoder are known."""

    package, reads_text = "none", False

    def check_encodes(self) -> None:
        raise UserError(NO_ENCODER)

    def list_models(self) -> dict[str, list[str]]:
        return {}

    def check(self, spec: BackboneSpec) -> None:
        if wrong := next((key for key, value in OTHERS.items() if getattr(spec, key) != value), None):
            key = wrong.removesuffix("_spec")
            raise UserError(f"backbone.{key} says how an encoder is made, and library: given has none: leave it out")

    def fingerprint(self, spec: BackboneSpec, hashes: Path) -> dict[str, Any]:
        return {"weights": "given"}

    def create(self, spec: BackboneSpec, download: bool) -> Backbone:
        return GivenFeatures(spec.precision).freeze()

    def image_side(self, spec: BackboneSpec) -> Backbone:
        raise UserError(NO_ENCODER)
