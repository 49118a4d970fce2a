"""What names an image encoder, as a plain value that JSON can hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip_ood.backbones.names import BackboneSpec


@dataclass(frozen=True)
class ImageSpec:
    """The fields of a `BackboneSpec`, without another text tower: whoever judges images reads no text."""

    library: str
    model: str
    pretrained: str | None = None
    preprocess: str | None = None
    random_seed: int = 0
    precision: str = "fp32"

    @property
    def text_spec(self) -> BackboneSpec | None:
        return None
