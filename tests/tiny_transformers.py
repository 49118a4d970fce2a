"""Tiny random models of transformers, saved in a folder as their makers publish them: configuration, weights, tokenizer, preprocessing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
import transformers
from tiny_towers import shaken
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from clip_ood.backbones.transformers_tower import STAGED
from clip_ood.config.schema import BackboneConfig

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
VISION = SMALL | {"image_size": 32, "patch_size": 8}
TEXT = SMALL | {
    "vocab_size": 40,
    "max_position_embeddings": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
NORMAL = {"image_mean": [0.3, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
CLIP_IMAGES = {
    "size": 40,
    "crop_size": 32,
    "do_center_crop": True,
    "resample": 3,
    "feature_extractor_type": "CLIPFeatureExtractor",
}
SQUARE = {"size": {"height": 32, "width": 32}, "resample": 3, "image_processor_type": "SiglipImageProcessor"}
VIT_IMAGES = {"size": 32, "feature_extractor_type": "ViTFeatureExtractor"}
DINO_IMAGES = {
    "size": {"shortest_edge": 40},
    "crop_size": {"height": 32, "width": 32},
    "do_center_crop": True,
    "resample": 3,
    "image_processor_type": "BitImageProcessor",
}
DINO = SMALL | {"image_size": 32, "patch_size": 8, "mlp_ratio": 2}
KINDS = {  # model type -> configuration, what its preprocessor_config.json says beside mean and std
    "clip": ({"vision_config": VISION, "text_config": TEXT, "projection_dim": 24}, CLIP_IMAGES),
    "metaclip_2": ({"vision_config": VISION, "text_config": TEXT, "projection_dim": 24}, CLIP_IMAGES),
    "siglip": ({"vision_config": VISION, "text_config": TEXT | {"projection_size": 32}}, SQUARE),
    "dinov2": (DINO, DINO_IMAGES),
    "dinov2_with_registers": (DINO | {"num_register_tokens": 3}, DINO_IMAGES),
    "dinov3_vit": (VISION | {"num_register_tokens": 2}, DINO_IMAGES),
    "vit": (VISION, VIT_IMAGES),
    "deit": (VISION, VIT_IMAGES),
    "beit": (VISION | {"use_relative_position_bias": True}, VIT_IMAGES),
    "convnext": (
        {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "image_size": 64},
        {
            "size": {"shortest_edge": 64},
            "crop_pct": 0.875,
            "resample": 3,
            "image_processor_type": "ConvNextFeatureExtractor",
        },
    ),
    "resnet": (
        {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"},
        {"size": 64, "crop_pct": 0.875, "resample": 3, "feature_extractor_type": "ConvNextFeatureExtractor"},
    ),
}
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "a", "photo", "of", "cat", "dog", "fox", ".", "the", "many", "large"]


def make(folder: Path, kind: str, **changes) -> transformers.PreTrainedModel:
    """Fills `folder` with a tiny model of a type, and returns the model itself."""
    described, prepared = KINDS[kind]
    config = transformers.CONFIG_MAPPING[kind](**json.loads(json.dumps(described)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = shaken(transformers.AutoModel.from_config(config, **changes))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(prepared | NORMAL))
    if "text_config" in described:
        tokenizer(folder)
    return model


def spec(folder: Path, **keys) -> BackboneConfig:
    """The encoder of a model's folder with its own weights."""
    return BackboneConfig(library="transformers", model=f"local-dir:{folder}", **{"pretrained": "default"} | keys)


def copy(folder: Path, to: Path, **changes) -> Path:
    """A copy of a model's folder whose config.json has other keys."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | changes))
    return to


def pixels(kind: str, count: int = 3) -> torch.Tensor:
    """Random images of the size that a tiny model takes."""
    side = 64 if kind in STAGED else 32
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def tokenizer(folder: Path) -> None:
    """Writes a tokenizer of `WORDS`, which knows lower case alone."""
    own = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=own, model_max_length=16, **special).save_pretrained(folder)


OPEN_CLIP_NAMES = {  # of a block
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def as_open_clip(model: transformers.CLIPModel) -> torch.nn.Module:
    """The tiny CLIP as a model of open_clip whose image tower has the same weights: its packed attention is put together from q, k, v."""
    import open_clip

    tower = {"width": 32, "layers": 2, "mlp_ratio": 1.5}
    images = tower | {"image_size": 32, "patch_size": 8, "head_width": 16}
    texts = tower | {"context_length": 16, "vocab_size": 40, "heads": 2}
    made = open_clip.CLIP(24, images, texts, quick_gelu=True).eval()
    own = {name.removeprefix("vision_model."): value for name, value in model.state_dict().items()}
    state = {
        "visual.class_embedding": own["embeddings.class_embedding"],
        "visual.positional_embedding": own["embeddings.position_embedding.weight"],
        "visual.conv1.weight": own["embeddings.patch_embedding.weight"],
        "visual.proj": own["visual_projection.weight"].T,
    }
    for part in ("weight", "bias"):
        for old, new in (("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post")):
            state[f"visual.{new}.{part}"] = own[f"{old}.{part}"]
        for number in range(2):
            block, to = f"encoder.layers.{number}", f"visual.transformer.resblocks.{number}"
            packed = [own[f"{block}.self_attn.{each}_proj.{part}"] for each in "qkv"]
            state[f"{to}.attn.in_proj_{part}"] = torch.cat(packed)
            state |= {f"{to}.{new}.{part}": own[f"{block}.{old}.{part}"] for old, new in OPEN_CLIP_NAMES.items()}
    left = made.load_state_dict(state, strict=False)
    assert not left.unexpected_keys and not [name for name in left.missing_keys if name.startswith("visual")]
    return made
