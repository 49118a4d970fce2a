"""A folder of somebody else's that is as it should be loads: text towers, tokenizers and published descriptions."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import strangers
import torch
from safetensors.torch import save_file

from clip_ood.backbones.checked_config import MODEL, OPEN_CLIP, TEXT_TOWER, TOKENIZER, NotAllowed, checked
from clip_ood.backbones.create import create_backbone
from clip_ood.backbones.spec import ImageSpec
from clip_ood.config.schema import BackboneConfig

pytestmark = pytest.mark.slow


@pytest.fixture
def tower(root, tmp_path):
    """A folder with a text tower and tokenizer of transformers, and the model that open_clip makes of it."""
    pytest.importorskip("transformers")
    folder = strangers.encoder(tmp_path / "tower", root / "clip", tmp_path / "ran", strangers.READ_TEXT)
    (folder / "open_clip_pytorch_model.bin").unlink()
    torch.manual_seed(0)
    reference = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False).eval()
    save_file(reference.state_dict(), folder / "open_clip_model.safetensors")
    return folder, reference


@torch.inference_mode()
def test_a_text_tower_of_transformers_reads_texts_as_in_open_clip(tower, tmp_path, watch):
    folder, reference = tower
    texts = ["a photo of a cat", "a dog."]
    ours = create_backbone(BackboneConfig(model=f"local-dir:{folder}"))
    expected = reference.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(texts), normalize=True)
    torch.testing.assert_close(ours.encode_text(texts), expected)
    assert watch.saw_nothing()


@torch.inference_mode()
@pytest.mark.parametrize("moved", [False, True])
def test_an_image_encoder_alone_is_that_of_the_whole_model(tower, moved, tmp_path, watch):
    folder, reference = tower
    if moved:
        folder = folder.rename(tmp_path / "elsewhere")  # the text tower is not where the config says
        (folder / "config.json").unlink()
    ours = create_backbone(ImageSpec("open_clip", f"local-dir:{folder}"), download=False)
    images = torch.randn(2, 3, 32, 32)
    expected = reference.encode_image(images, normalize=True)
    torch.testing.assert_close(ours.project(ours.encode_image(images)), expected)
    assert ours.logit_scale is None and watch.saw_nothing()
    with pytest.raises(TypeError, match="no text encoder"):
        ours.encode_text(["a cat"])


@torch.inference_mode()
def test_texts_are_read_with_a_tower_and_a_tokenizer_out_of_the_cache(tower, root, tmp_path, watch, hub):
    folder, reference = tower
    (root / "clip" / "note").touch()
    for name in ("somebody/tower", "words"):
        strangers.in_cache(hub, name, folder)
    described = json.loads((folder / "open_clip_config.json").read_text())
    described["model_cfg"]["text_cfg"] |= {"hf_model_name": "somebody/tower", "hf_tokenizer_name": "words"}
    hubs = tmp_path / "model"
    hubs.mkdir()
    (hubs / "open_clip_config.json").write_text(json.dumps(described))
    save_file(reference.state_dict(), hubs / "open_clip_model.safetensors")
    model = strangers.in_cache(hub, "somebody/model", hubs)
    huggingface_hub.constants.HF_HUB_OFFLINE = True  # which the fixture sets back
    ours = create_backbone(BackboneConfig(model=model))
    expected = reference.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(["a fox"]), normalize=True)
    torch.testing.assert_close(ours.encode_text(["a fox"]), expected)
    assert watch.saw_nothing()
    (folder / "tokenizer_config.json").write_text(json.dumps(strangers.ASKS))
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: the key 'auto_map'"):
        create_backbone(BackboneConfig(model=model))
    assert watch.saw_nothing()


@pytest.mark.parametrize("name", open_clip.list_models())
def test_open_clips_own_models_are_allowed(name):
    described = open_clip.get_model_config(name)
    assert checked(described, MODEL, name) == described


REAL = {  # as published beside the weights of their makers
    "laion's H": {"model_cfg": {"embed_dim": 1024, "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14}, "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24}}, "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}},
    "a frozen text tower": {"model_cfg": {"embed_dim": 1024, "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14}, "text_cfg": {"hf_model_name": "xlm-roberta-large", "hf_tokenizer_name": "xlm-roberta-large", "hf_proj_type": "mlp", "hf_pooler_type": "mean_pooler"}}, "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}},
    "a sigmoid model": {"model_cfg": {"embed_dim": 1152, "init_logit_bias": -10, "custom_text": True, "vision_cfg": {"image_size": 384, "timm_model_name": "vit_so400m_patch14_siglip_384", "timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none"}, "text_cfg": {"context_length": 64, "vocab_size": 32000, "hf_tokenizer_name": "timm/ViT-B-16-SigLIP", "tokenizer_kwargs": {"clean": "canonicalize"}, "width": 1152, "heads": 16, "layers": 27, "mlp_ratio": 3.7362, "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-06}}}, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "squash"}},
    "a mobile one": {"model_cfg": {"embed_dim": 512, "custom_text": True, "vision_cfg": {"timm_model_name": "fastvit_mci1", "timm_model_pretrained": False, "timm_pool": "avg", "timm_proj": None, "timm_drop": 0.0, "timm_drop_path": 0.0, "image_size": 256}, "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "no_causal_mask": True}}, "preprocess_cfg": {"size": [256, 256], "mode": "RGB", "mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear", "resize_mode": "shortest", "fill_color": 0}},
    "a trained activation": {"model_cfg": {"embed_dim": 1024, "quick_gelu": True, "vision_cfg": {"image_size": 378, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14}, "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24}}, "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "interpolation": "bicubic", "resize_mode": "squash"}},
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_published_descriptions_are_allowed(name):
    assert checked(REAL[name], OPEN_CLIP, name) == REAL[name]


def test_published_text_towers_and_tokenizers_are_allowed():
    roberta = {"architectures": ["XLMRobertaForMaskedLM"], "attention_probs_dropout_prob": 0.1, "bos_token_id": 0}
    roberta |= {"eos_token_id": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-05, "model_type": "xlm-roberta"}
    roberta |= {"output_past": True, "pad_token_id": 1, "position_embedding_type": "absolute", "type_vocab_size": 1}
    kept = checked(roberta | {"transformers_version": "4.17", "use_cache": True, "vocab_size": 9}, TEXT_TOWER, "here")
    assert kept.keys() == roberta.keys() - {"architectures", "output_past"} | {"vocab_size"}
    token = {"content": "<mask>", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False}
    tokenizer = {"tokenizer_class": "T5TokenizerFast", "extra_ids": 0, "model_max_length": 10**30, "mask_token": token}
    tokenizer |= {"added_tokens_decoder": {"1": token | {"special": True}}, "sp_model_kwargs": {}, "pad_token": "<pad>"}
    tokenizer |= {"additional_special_tokens": ["<a>", token | {"__type": "AddedToken"}], "legacy": False}
    assert checked(tokenizer | {"tokenizer_file": "/x", "chat_template": "{{ x }}"}, TOKENIZER, "here") == tokenizer
    with pytest.raises(NotAllowed, match="here: pad_token is"):
        checked({"pad_token": {"content": 3}}, TOKENIZER, "here")
    with pytest.raises(NotAllowed, match=r"here is \[\], and must be a mapping"):
        checked([], TOKENIZER, "here")


def test_the_demo_encoder_judges_offline(tmp_path, watch):
    folder = Path(__file__).parents[1] / "data" / "demo_encoder"
    if not (folder / "open_clip_model.safetensors").is_file():
        pytest.skip("the demo encoder is not built: clip-ood demo encoder")
    both = create_backbone(BackboneConfig(model=f"local-dir:{folder}"))
    images = create_backbone(ImageSpec("open_clip", f"local-dir:{folder}"), download=False)
    pixels = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(both.encode_image(pixels), images.encode_image(pixels))
        assert both.encode_text(["a cat"]).shape == (1, 384)
    assert watch.saw_nothing()
