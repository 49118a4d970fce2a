"""An image encoder as a folder of its own: the weights of its tower and projection, and what they are built into.

<folder>/image_encoder.safetensors             tower.*, projection.*
<folder>/architecture/open_clip_config.json    open_clip's architecture and preprocessing, its text tower as small as it goes
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clip_ood.backbones.backbone import Backbone
from clip_ood.backbones.names import BackboneSpec
from clip_ood.backbones.spec import ImageSpec

WEIGHTS = "image_encoder.safetensors"
CONFIG = Path("architecture", "open_clip_config.json")  # beside weights, open_clip would load them
NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
OF_TEXT = ("multimodal_cfg", "custom_text")


def save_image_encoder(folder: Path, backbone: Backbone, spec: BackboneSpec) -> list[Path]:
    """Writes what turns images into g and h; the files. `backbone` is the one of `spec`, its weights trained on or not."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / WEIGHTS]
    if spec.library == "open_clip":
        from clip_ood.backbones.open_clip_backbone import architecture

        described = _images_alone(architecture(spec, backbone))
        files.append(folder / CONFIG)
        files[-1].parent.mkdir(exist_ok=True)
        files[-1].write_text(json.dumps(described, indent=1, default=list), encoding="utf-8")
    save_file(_weights(backbone), files[0])
    return files


def load_image_encoder(folder: Path, spec: BackboneSpec) -> Backbone:
    """The encoder that `save_image_encoder` wrote, frozen, on the CPU.

    Raises: ValueError for weights that are not this architecture's.
    """
    if spec.library == "timm":
        from clip_ood.backbones.timm_backbone import TimmBackbone

        backbone = TimmBackbone(ImageSpec("timm", spec.model, precision=spec.precision))
    else:
        from clip_ood.backbones.open_clip_backbone import OpenClipBackbone

        described = _images_alone(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        with _unlogged(), TemporaryDirectory() as own:
            Path(own, CONFIG.name).write_text(json.dumps(described), encoding="utf-8")
            backbone = OpenClipBackbone(ImageSpec("open_clip", f"local-dir:{own}", precision=spec.precision))
    weights = load_file(folder / WEIGHTS)
    for prefix, module in _modules(backbone).items():
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(f"{folder / WEIGHTS} does not fit the encoder {spec.model}: {error}") from error
    return backbone.freeze()


def _images_alone(described: dict[str, Any]) -> dict[str, Any]:
    """An open_clip config that builds an image tower and nothing else, and asks nothing of any other place: a tokenizer or
    pretrained tower that it names could run code or be fetched."""
    model = {key: value for key, value in described["model_cfg"].items() if key not in OF_TEXT}
    vision = dict(model["vision_cfg"])
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
        if ":" in vision["timm_model_name"]:
            raise ValueError(f"the image tower {vision['timm_model_name']!r} would be fetched from elsewhere")
    model |= {"vision_cfg": vision, "text_cfg": NO_TEXT}
    return {"model_cfg": model, "preprocess_cfg": described["preprocess_cfg"]}


@contextmanager
def _unlogged() -> Iterator[None]:
    """open_clip warns of weights that are not there yet."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _modules(backbone: Backbone) -> dict[str, nn.Module]:
    projection = getattr(backbone, "projection", None)
    return {"tower.": backbone.image_tower} | ({"projection.": projection} if projection is not None else {})


def _weights(backbone: Backbone) -> dict[str, Tensor]:
    return {
        prefix + name: value.detach().cpu().contiguous()
        for prefix, module in _modules(backbone).items()
        for name, value in module.state_dict().items()
    }
