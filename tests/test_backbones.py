"""Encoders against open_clip and timm themselves: tiny towers with weights on disk, real architectures on meta."""

from __future__ import annotations

import json
import re
from pathlib import Path

import huggingface_hub.constants
import open_clip
import pytest
import timm
import torch
from open_clip.transformer import QuickGELU
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import cosine_similarity, normalize
from torchvision.transforms import CenterCrop, Normalize, Resize

from clip_ood.backbones.create import create_backbone
from clip_ood.config.schema import BackboneConfig

TEXTS = ["a cat", "a photo of two dogs"]
TEXT = {"context_length": 16, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "patch_size": 16, "layers": 2, "width": 64}
POOLED = VIT | {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 4}
CONVNEXT = {"timm_model_name": "test_convnext", "timm_pool": "", "image_size": 64}
TIMM_VIT = {"timm_model_name": "test_vit", "image_size": 160}


def clip(vision, text=TEXT, **more):
    return {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text, **more}


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
PREPARED = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "resize_mode": "squash"}


def write_folder(folder: Path, config: dict) -> None:
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPARED}))


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """The model with no weight left at a default (zero biases and scales hide errors)."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.1 * torch.randn(weights.shape, generator=generator))
    return model.eval()


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


def encoder(model, library="open_clip", **keys):
    return create_backbone(BackboneConfig(library=library, model=model, **keys))


def images(size):
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))


def has_quick_gelu(backbone):
    return any(isinstance(module, QuickGELU) for module in backbone.modules())


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
        write_folder(tmp_path, TOWERS["vit"][0])
        model = f"local-dir:{tmp_path}"
    before = torch.get_rng_state()
    first = encoder(model, library, random_seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again, other = (encoder(model, library, random_seed=seed).state_dict() for seed in (5, 6))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


# Checkpoints


@pytest.fixture
def tiny_b32(monkeypatch):
    """ViT-B-32 and its tags, two layers deep; its weights."""
    for name, more in (("ViT-B-32", {}), ("ViT-B-32-quickgelu", {"quick_gelu": True})):
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, clip(VIT) | more)
    return shaken(open_clip.create_model("ViT-B-32"))


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("tag, quick_gelu", [("openai", True), ("laion2b_s34b_b79k", False)])
@torch.inference_mode()
def test_a_checkpoint_file_takes_its_activation_from_the_tag_it_was_trained_as(
    suffix, tag, quick_gelu, tiny_b32, tmp_path
):
    file = tmp_path / f"mine.{suffix}"
    if suffix == "pt":
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in tiny_b32.state_dict().items()}}, file)
    else:
        save_file(tiny_b32.state_dict(), file)
    backbone = encoder("ViT-B-32", pretrained=str(file), preprocess=tag)
    reference = open_clip.create_model("ViT-B-32", force_quick_gelu=quick_gelu).eval()
    reference.load_state_dict(tiny_b32.state_dict())
    assert has_quick_gelu(backbone) == quick_gelu
    torch.testing.assert_close(
        backbone.project(backbone.encode_image(images(32))), reference.encode_image(images(32), normalize=True)
    )


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize(
    "library, model, keys", [("open_clip", "ViT-B-32", {"preprocess": "openai"}), ("timm", "test_vit", {})]
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("content, message", [("bomb", "never run"), ("other", "mine"), ("noise", "mine")])
def test_a_file_that_is_no_checkpoint_of_this_model_is_refused(
    library, model, keys, suffix, content, message, tiny_b32, tmp_path
):
    file, marker = tmp_path / f"mine.{suffix}", tmp_path / "exploded"
    if content == "noise":
        file.write_bytes(b"noise" * 100)
    elif suffix == "safetensors":
        save_file({"weights": torch.zeros(2)}, file)
        message = "mine"
    else:
        torch.save({"state_dict": Bomb(marker) if content == "bomb" else {"weights": torch.zeros(2)}}, file)
    with pytest.raises(ValueError, match=message) as error:
        encoder(model, library, pretrained=str(file), **keys)
    assert str(file) in str(error.value) and len(str(error.value)) < 700
    assert not marker.exists()


def test_a_bomb_in_a_folder_is_refused(tmp_path):
    write_folder(tmp_path, TOWERS["vit"][0])
    torch.save(Bomb(tmp_path / "exploded"), tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match=rf"{tmp_path}.*never run"):
        encoder(f"local-dir:{tmp_path}")
    assert not (tmp_path / "exploded").exists()


def test_a_mistyped_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean ViT-B-16"):
        encoder("ViT-B-61")


@pytest.mark.parametrize("keys", [{"pretrained": "laion2b_s34b_b79k"}, {"preprocess": "datacomp_xl_s13b_b90k"}])
def test_a_quickgelu_architecture_refuses_weights_trained_with_gelu(keys):
    with pytest.raises(ValueError, match="GELU, not QuickGELU: use model ViT-B-32"):
        encoder("ViT-B-32-quickgelu", **keys)


# Preprocessing


def prepared(backbone):
    """Resized to, interpolation, mean, std."""
    steps = {type(step): step for step in backbone.transform.transforms}
    resize, norm = steps[Resize], steps[Normalize]
    return (
        resize.size,
        resize.interpolation.value,
        *(tuple(round(float(x), 4) for x in v) for v in (norm.mean, norm.std)),
    )


OPENAI = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)


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


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda weights: weights.pop("norm.bias"), "1 (norm.bias) missing, none unknown"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "none missing, 1 (extra) unknown"),
        (
            lambda weights: weights.update({"norm.bias": torch.zeros(1)}),
            "1 (norm.bias: (1,) in the file, (64,) in the model) of another shape",
        ),
    ],
    ids=["missing", "unknown", "size"],
)
def test_a_timm_file_must_fit_exactly(change, message, tmp_path):
    weights = timm.create_model("test_vit").state_dict()
    change(weights)
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=re.escape(message)):
        encoder("test_vit", "timm", pretrained=str(tmp_path / "weights.safetensors"))


# Weights that were downloaded before


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hugging Face cache without network; a function that puts a repository's files into it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def repository(name, commit="c0ffee" * 6 + "abcd"):
        folder = tmp_path / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(commit)
        (folder / "snapshots" / commit).mkdir(parents=True)
        return folder / "snapshots" / commit

    return repository


def test_cached_weights_of_a_tag_need_no_network(hub, tiny_b32, capsys):
    folder = hub("timm/vit_base_patch32_clip_224.openai")
    save_file(tiny_b32.state_dict(), folder / "open_clip_model.safetensors")
    backbone = encoder("ViT-B-32", pretrained="openai")
    assert torch.equal(backbone.projection.matrix, tiny_b32.visual.proj) and has_quick_gelu(backbone)
    assert prepared(backbone)[2:] == OPENAI and "Downloading" not in capsys.readouterr().out


def test_cached_weights_of_timm_need_no_network(hub):
    model = shaken(timm.create_model("test_vit"))
    save_file(model.state_dict(), hub("timm/test_vit.r160_in1k") / "model.safetensors")
    assert torch.equal(encoder("test_vit", "timm", pretrained="default").model.norm.bias, model.norm.bias)


def test_a_cached_repository_needs_its_weights(hub, towers, monkeypatch):
    model, reference = towers("vit")
    folder = hub("someone/tiny")
    write_folder(folder, TOWERS["vit"][0])
    with pytest.raises(ConnectionError, match="someone/tiny"):
        encoder("hf-hub:someone/tiny")
    with (
        monkeypatch.context() as other_process,
        pytest.raises(ValueError, match=r"someone/tiny has or gives no open_clip_model"),
    ):
        other_process.setenv("LOCAL_RANK", "1")
        encoder("hf-hub:someone/tiny")
    save_file(reference.state_dict(), folder / "open_clip_model.safetensors")
    assert torch.equal(encoder("hf-hub:someone/tiny").projection.matrix, encoder(model).projection.matrix)
