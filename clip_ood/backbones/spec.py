"""The specification of an encoder, as a plain value that JSON can hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class BackboneSpec(Protocol):
    """The fields that specify an encoder; `clip_ood.config.schema.BackboneConfig` has them."""

    library: str
    model: str
    pretrained: str | None
    preprocess: str | None
    random_seed: int
    precision: str
    pooling: str
    image_size: int | None

    @property
    def text_spec(self) -> BackboneSpec | None:
        """The model whose text tower replaces this one's."""


@dataclass(frozen=True)
class EncoderSpec:
    """The fields of a `BackboneSpec`, without another text tower: an encoder with its own texts, if it has some."""

    library: str
    model: str
    pretrained: str | None = None
    preprocess: str | None = None
    random_seed: int = 0
    precision: str = "fp32"
    pooling: str = "default"
    image_size: int | None = None

    @property
    def text_spec(self) -> BackboneSpec | None:
        return None


@dataclass(frozen=True)
class ImageSpec(EncoderSpec):
    """An encoder of images alone: what judges images reads no text."""
