"""Encoders against open_clip and timm themselves: tiny towers with weights on disk, real architectures on meta."""

from __future__ import annotations

import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_towers import OPENAI, TEXT, TIMM_VIT, VIT, clip, encoder, images, prepared, shaken, write_folder
from torch.nn.functional import cosine_similarity, normalize
from torchvision.transforms import CenterCrop

TEXTS = ["a cat", "a photo of two dogs"]
POOLED = VIT | {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 4}
CONVNEXT = {"timm_model_name": "test_convnext", "timm_pool": "", "image_size": 64}
# name: (open_clip config, width of g, width of h, the reference's own way from g to h before normalisation)
TOWERS = {
    "vit": (clip(VIT), 64, 24, lambda visual, g: g @ visual.proj),
    "average pooling": (clip(VIT | {"pool_type": "avg"}), 64, 24, lambda visual, g: g @ visual.proj),
    "attentional pooling": (clip(POOLED), 24, 24, lambda visual, g: g @ visual.proj),
    "coca": (
        clip(
            POOLED | {"output_tokens": True},
            TEXT | {"embed_cls": True, "output_tokens": True, "context_length": 15},
            custom_text=True,
            multimodal_cfg={"context_length": 16, "width": 24, "heads": 2, "layers": 1},
        ),
        24,
        24,
        lambda visual, g: g @ visual.proj,
    ),
    "custom text": (clip(VIT, custom_text=True, quick_gelu=True), 64, 24, lambda visual, g: g @ visual.proj),
    "modified resnet": (
        clip({"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}),
        24,
        24,
        lambda visual, g: g,
    ),
    "convnext linear": (clip(CONVNEXT | {"timm_proj": "linear"}), 64, 24, lambda visual, g: visual.head.proj(g)),
    "convnext mlp": (clip(CONVNEXT | {"timm_proj": "mlp"}), 64, 24, lambda visual, g: visual.head.mlp(g)),
    "timm classifier": (
        clip(TIMM_VIT | {"timm_pool": "token", "timm_proj": None}, custom_text=True),
        64,
        24,
        lambda visual, g: visual.trunk.head(g),
    ),
    "siglip": (
        clip(
            TIMM_VIT | {"timm_pool": "map", "timm_proj": "none"},
            TEXT | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
            custom_text=True,
            init_logit_bias=-10,
        )
        | {"embed_dim": 64},
        64,
        64,
        lambda visual, g: g,
    ),
}


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """name -> (local-dir:FOLDER with weights, the reference model)."""
    made = {}

    def tower(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("tower")
            write_folder(folder, TOWERS[name][0])
            reference = shaken(open_clip.create_model(f"local-dir:{folder}"))
            save_file(reference.state_dict(), folder / "open_clip_model.safetensors")
            made[name] = f"local-dir:{folder}", reference
        return made[name]

    return tower


# open_clip


@pytest.mark.parametrize("name", TOWERS)
@torch.inference_mode()
def test_g_comes_before_the_projection_and_h_is_open_clips_embedding(name, towers):
    model, reference = towers(name)
    config, width, joint_width, by_reference = TOWERS[name]
    backbone = encoder(model)
    batch = images(config["vision_cfg"]["image_size"])
    g = backbone.encode_image(batch)
    h = backbone.project(g)
    expected = reference.encode_image(batch, normalize=True)
    assert g.shape == (3, width) and h.shape == (3, joint_width)
    torch.testing.assert_close(h, expected)
    torch.testing.assert_close(normalize(by_reference(reference.visual, g), dim=-1), expected)
    torch.testing.assert_close(h.norm(dim=1), torch.ones(3))
    assert g.norm(dim=1).sub(1).abs().min() > 0.01  # not normalised


@pytest.mark.parametrize("name", ["vit", "coca", "custom text", "siglip"])
@torch.inference_mode()
def test_texts_and_logit_scale_are_open_clips(name, towers):
    model, reference = towers(name)
    backbone = encoder(model)
    expected = reference.encode_text(open_clip.get_tokenizer(model)(TEXTS), normalize=True)
    torch.testing.assert_close(backbone.encode_text(TEXTS), expected)
    assert backbone.has_text and backbone.logit_scale == pytest.approx(reference.logit_scale.exp().item())


@pytest.mark.parametrize("precision, dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16)])
@pytest.mark.parametrize("name", ["vit", "coca", "modified resnet", "convnext mlp", "siglip"])
@torch.inference_mode()
def test_half_precision_weights_give_float32_close_to_fp32(name, precision, dtype, towers):
    model, _ = towers(name)
    batch = images(TOWERS[name][0]["vision_cfg"]["image_size"])
    backbone, full = encoder(model, precision=precision), encoder(model)
    assert {weights.dtype for weights in backbone.parameters()} == {dtype}
    g, h, texts = backbone.encode_image(batch), backbone.project(full.encode_image(batch)), backbone.encode_text(TEXTS)
    assert {g.dtype, h.dtype, texts.dtype} == {torch.float32}
    assert cosine_similarity(g, full.encode_image(batch)).min() > 0.999
    assert cosine_similarity(h, full.project(full.encode_image(batch))).min() > 0.999
    assert cosine_similarity(texts, full.encode_text(TEXTS)).min() > 0.999
    assert backbone.logit_scale == full.logit_scale


def test_the_encoder_is_frozen(towers):
    backbone = encoder(towers("vit")[0])
    assert not backbone.training and not any(weights.requires_grad for weights in backbone.parameters())


# timm


@pytest.mark.parametrize("model", ["test_vit", "test_convnext", "test_resnet", "test_efficientnet"])
@torch.inference_mode()
def test_timm_features_are_what_the_classifier_sees_and_its_weights_are_left_out(model, tmp_path):
    whole = shaken(timm.create_model(model))
    file = tmp_path / "whole.safetensors"
    save_file(whole.state_dict(), file)
    backbone = encoder(model, "timm", pretrained=str(file))
    batch = images(160)
    g = backbone.encode_image(batch)
    assert g.shape == (3, whole.num_features) and g.dtype == torch.float32
    torch.testing.assert_close(g, whole.forward_head(whole.forward_features(batch), pre_logits=True))
    assert backbone.project(g) is None and backbone.logit_scale is None and not backbone.has_text
    with pytest.raises(TypeError, match="no text encoder"):
        backbone.encode_text(TEXTS)


# Both


# Architectures as shipped, without memory: g's and h's widths.
@pytest.mark.parametrize(
    "library, model, width, joint_width",
    [
        ("open_clip", "ViT-bigG-14", 1664, 1280),
        ("open_clip", "ViT-H-14", 1280, 1024),
        ("open_clip", "ViT-B-16", 768, 512),
        ("open_clip", "coca_ViT-B-32", 512, 512),
        ("open_clip", "RN50", 1024, 1024),
        ("open_clip", "convnext_base_w", 1024, 640),
        ("open_clip", "convnext_large_d", 1536, 768),
        ("open_clip", "EVA02-B-16", 768, 512),
        ("open_clip", "MobileCLIP-S1", 1024, 512),
        ("timm", "vit_base_patch16_224", 768, None),
        ("timm", "resnet50", 2048, None),
    ],
)
def test_widths_of_real_architectures(library, model, width, joint_width):
    with torch.device("meta"), torch.inference_mode():
        backbone = encoder(model, library, precision="bf16")
        size = next(step.size[0] for step in backbone.transform.transforms if isinstance(step, CenterCrop))
        g = backbone.encode_image(torch.zeros(2, 3, size, size))
        h = backbone.project(g)
    assert g.is_meta and g.shape == (2, width)
    assert (h is None) if joint_width is None else (h.shape == (2, joint_width))


@pytest.mark.parametrize("library, model", [("open_clip", "folder"), ("timm", "test_vit")])
def test_random_weights_come_from_their_seed_alone(library, model, tmp_path):
    if model == "folder":
        write_folder(tmp_path, clip(VIT))
        model = f"local-dir:{tmp_path}"
    before = torch.get_rng_state()
    first = encoder(model, library, random_seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again, other = (encoder(model, library, random_seed=seed).state_dict() for seed in (5, 6))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


# Preprocessing


@pytest.mark.parametrize(
    "model, tag, expected",
    [
        ("ViT-B-32", "openai", (224, "bicubic", *OPENAI)),
        ("ViT-H-14-378-quickgelu", "dfn5b", ((378, 378), "bicubic", *OPENAI)),
        ("MobileCLIP-S1", "datacompdr", (256, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
    ],
)
def test_preprocessing_follows_the_tag(model, tag, expected):
    with torch.device("meta"):
        assert prepared(encoder(model, preprocess=tag)) == expected


def test_preprocessing_follows_a_folders_config_and_a_timm_models(towers):
    assert prepared(encoder(towers("vit")[0])) == ((32, 32), "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    backbone = encoder("test_vit", "timm")
    half = (0.5, 0.5, 0.5)
    assert prepared(backbone) == (168, "bicubic", half, half)  # 160 / a crop of 0.95
    assert backbone.transform(Image.new("RGB", (300, 200))).shape == (3, 160, 160)
