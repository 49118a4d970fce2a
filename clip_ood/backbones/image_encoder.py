"""Saves an image encoder as a folder: the weights of its tower and projection, and the architecture that they are loaded into.

<folder>/image_encoder.safetensors             tower.*, projection.*
<folder>/architecture/open_clip_config.json    open_clip's architecture and preprocessing, with a minimal text tower
<folder>/architecture/config.json              the same of a model of transformers: its configuration and preprocessing
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from clip_ood.backbones.backbone import Backbone
from clip_ood.backbones.library import library
from clip_ood.backbones.spec import BackboneSpec
from clip_ood.errors import UserError
from clip_ood.files.tensor_files import save_tensors
from clip_ood.files.writing import write_text

WEIGHTS = "image_encoder.safetensors"
ARCHITECTURE = "architecture"  # not beside the weights, which open_clip would load


def save_image_encoder(folder: Path, backbone: Backbone, spec: BackboneSpec) -> list[Path]:
    """Writes what turns images into g and h, and returns the files. `backbone` is the one of `spec`, whether fine-tuned or not."""
    files = [folder / WEIGHTS]
    of = library(spec.library)
    if (described := of.described(backbone)) is not None:
        files.append(folder / ARCHITECTURE / of.described_in)
        write_text(files[-1], json.dumps(described, indent=1, default=list))
    save_tensors(_weights(backbone), files[0])
    return files


def load_image_encoder(folder: Path, spec: BackboneSpec) -> Backbone:
    """Loads the encoder that `save_image_encoder` wrote, frozen, on the CPU, from this folder alone.

    Raises: ValueError for a configuration that is not allowed, and for weights that are not this architecture's.
    """
    of = library(spec.library)
    backbone = of.restored(spec, folder / ARCHITECTURE / of.described_in)
    weights = load_file(folder / WEIGHTS)
    for prefix, module in _modules(backbone).items():
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise UserError(f"{folder / WEIGHTS} does not fit the encoder {spec.model}: {error}") from error
    return backbone.freeze()


def _modules(backbone: Backbone) -> dict[str, nn.Module]:
    projection = getattr(backbone, "projection", None)
    return {"tower.": backbone.image_tower} | ({"projection.": projection} if projection is not None else {})


def _weights(backbone: Backbone) -> dict[str, Tensor]:
    return {
        prefix + name: value.detach().cpu().contiguous()
        for prefix, module in _modules(backbone).items()
        for name, value in module.state_dict().items()
    }
