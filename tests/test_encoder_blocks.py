"""Every encoder block: its architecture is built without memory (the meta device) and has what its comment tells."""

from __future__ import annotations

import re

import open_clip
import pytest
import torch
import yaml
from PIL import Image

from clip_ood.backbones.create import create_backbone
from clip_ood.backbones.library import library
from clip_ood.config.loading import CONFIGS
from clip_ood.config.schema import BackboneConfig

HERE = CONFIGS / "backbones"
BLOCKS = [path for path in sorted(HERE.glob("*.yaml")) if not path.name.startswith("demo")]
BILLION = {"M": 1e6, "B": 1e9}


@pytest.fixture(params=BLOCKS, ids=lambda path: path.stem, scope="module")
def block(request):
    text = request.param.read_text()
    spec = BackboneConfig(**yaml.safe_load(text))
    weights = {"pretrained": None} | ({"preprocess": spec.pretrained} if spec.library == "open_clip" else {})
    spec_of_random = spec.model_copy(update=weights)
    with torch.device("meta"):
        own = create_backbone if has_all_files(spec) else library(spec.library).image_side
        return text, spec, own(spec_of_random)


def has_all_files(spec) -> bool:
    """Says whether open_clip itself holds the files of the tokenizer, as it does not for those of transformers."""
    return spec.library != "open_clip" or not open_clip.get_model_config(spec.model)["text_cfg"].get(
        "hf_tokenizer_name"
    )


def test_the_encoder_has_the_size_and_widths_that_its_block_tells(block):
    text, spec, backbone = block
    count, unit = re.search(r"([\d.]+) (M|B) parameters in the image tower", text).groups()
    width = int(re.search(r"g of width (\d+)", text)[1])
    joint = re.search(r"h of width (\d+)", text)
    assert sum(w.numel() for w in backbone.image_tower.parameters()) == pytest.approx(
        float(count) * BILLION[unit], rel=0.01
    )
    with torch.device("meta"), torch.inference_mode():
        g = backbone.encode_image(torch.zeros(2, 3, *backbone.preprocessing.size))
        h = backbone.project(g)
    assert g.shape == (2, width) and (spec.library == "open_clip") == (joint is not None)
    assert backbone.has_text == (joint is not None) or not has_all_files(spec)
    assert h is None if joint is None else h.shape == (2, int(joint[1]))


def test_images_get_the_size_that_the_block_tells(block):
    text, spec, backbone = block
    size = int(pixels[1]) if (pixels := re.search(r"(\d+) px", text)) else 224
    assert backbone.preprocessing.size == (size, size)
    if spec.library == "open_clip":  # timm's transform was made without memory, too
        assert backbone.transform(Image.new("RGB", (600, 540))).shape == (3, size, size)


def test_large_encoders_run_in_half_precision(block):
    _, spec, backbone = block
    large = sum(w.numel() for w in backbone.image_tower.parameters()) > 150e6
    assert (spec.precision == "bf16") == large
