"""Encoders of open_clip and timm with tiny towers, with weights on disk."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from open_clip.transformer import QuickGELU
from torchvision.transforms import Normalize, Resize

from clip_ood.backbones.create import create_backbone
from clip_ood.config.schema import BackboneConfig

TEXT = {"context_length": 16, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "patch_size": 16, "layers": 2, "width": 64}
TIMM_VIT = {"timm_model_name": "test_vit", "image_size": 160}
PREPARED = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "resize_mode": "squash"}
OPENAI = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)


def clip(vision, text=TEXT, **more):
    return {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, **more}


def write_folder(folder: Path, config: dict) -> None:
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPARED}))


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """The model with no weight left at a default (zero biases and scales hide errors)."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.1 * torch.randn(weights.shape, generator=generator))
    return model.eval()


def encoder(model, library="open_clip", **keys):
    return create_backbone(BackboneConfig(library=library, model=model, **keys))


def images(size):
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))


def has_quick_gelu(backbone):
    return any(isinstance(module, QuickGELU) for module in backbone.modules())


def prepared(backbone):
    """Resized to, interpolation, mean, std."""
    steps = {type(step): step for step in backbone.transform.transforms}
    resize, norm = steps[Resize], steps[Normalize]
    return (
        resize.size,
        resize.interpolation.value,
        *(tuple(round(float(x), 4) for x in v) for v in (norm.mean, norm.std)),
    )
