"""Checkpoints as their authors publish them: other names, wrappers, prefixes, sizes and containers give the same encoder."""

from __future__ import annotations

import argparse
import copy
import re
import zipfile
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_towers import TIMM_VIT, VIT, clip, encoder, images, shaken, write_folder
from torch import nn

from clip_ood.backbones.torchscript import read_torchscript

VIT_TIMM = "test_vit"


@pytest.fixture(scope="module")
def whole():
    """A timm model with its classifier."""
    return shaken(timm.create_model(VIT_TIMM))


def features(model, batch):
    return model.forward_head(model.forward_features(batch), pre_logits=True)


def backbone(state, path, model=VIT_TIMM):
    torch.save(state, path)
    return encoder(model, "timm", pretrained=str(path))


def named(state, prefix):
    return {f"{prefix}{name}": value for name, value in state.items()}


def without_head(state):
    return {name: value for name, value in state.items() if not name.startswith("head.")}


# What is done to a state dict before it is saved
PUBLISHED = {
    "as it is": lambda state: state,
    "training": lambda state: {"model": state, "epoch": 3, "args": argparse.Namespace(lr=0.1), "optimizer": {"a": [1]}},
    "averaged": lambda state: {"model": {n: 0 * v for n, v in state.items()}, "model_ema": state},
    "data parallel": lambda state: {"state_dict": named(state, "module.")},
    "compiled": lambda state: {"model": named(state, "_orig_mod.module.")},
    "Lightning": lambda state: {"state_dict": named(state, "model."), "loops": {}, "hyper_parameters": {}},
    "teacher and student": lambda state: {
        "student": named(without_head(state), "module.backbone."),
        "teacher": named(without_head(state), "backbone.") | {"head.mlp.0.weight": torch.zeros(3)},
    },
    "teacher and student by name": lambda state: {
        "state_dict": named({n: 0 * v for n, v in state.items()}, "student.") | named(state, "teacher.")
    },
    "momentum contrast": lambda state: {
        "state_dict": named(without_head(state), "module.base_encoder.") | {"module.predictor.0.weight": torch.zeros(3)}
    },
    "image tower of open_clip": lambda state: named(without_head(state), "visual.trunk.")
    | {"logit_scale": torch.ones([]), "text.cls_emb": torch.zeros(3)},
    "transformers around timm": lambda state: named(state, "timm_model."),
    "wrapped twice": lambda state: {"model": {"state_dict": named(state, "net.encoder.")}},
    "mask token": lambda state: without_head(state) | {"mask_token": torch.zeros(1, 64)},
}  # fmt: skip


@pytest.mark.parametrize("published", PUBLISHED)
@torch.inference_mode()
def test_a_timm_model_takes_what_is_published(published, whole, tmp_path):
    own = backbone(PUBLISHED[published](whole.state_dict()), tmp_path / "weights.pth")
    torch.testing.assert_close(own.encode_image(images(160)), features(whole, images(160)))


@pytest.mark.parametrize("name", ["weights.bin", "weights.safetensors", "weights", "safetensors.pth"])
@torch.inference_mode()
def test_a_file_is_told_by_its_content(name, whole, tmp_path):
    (save_file if "safetensors" in name else torch.save)(whole.state_dict(), tmp_path / name)
    own = encoder(VIT_TIMM, "timm", pretrained=str(tmp_path / name))
    torch.testing.assert_close(own.encode_image(images(160)), features(whole, images(160)))


# DINOv2


def dinov2(model, registers):
    """The names and shapes of DINOv2's own file for one of timm's DINOv2 models."""
    state = dict(model.state_dict())
    state["mask_token"] = torch.zeros(1, model.embed_dim)
    if registers:
        state["register_tokens"] = state.pop("reg_token")
        first = torch.full((1, 1, model.embed_dim), 0.5)
        state["cls_token"] = state["cls_token"] - 0.5
        state["pos_embed"] = torch.cat([first, state["pos_embed"]], dim=1)
    return state


@pytest.mark.parametrize(
    ("name", "registers"), [("vit_small_patch14_dinov2", False), ("vit_small_patch14_reg4_dinov2", True)]
)
@torch.inference_mode()
def test_dinov2s_own_files(name, registers, tmp_path):
    reference = shaken(timm.create_model(name, num_classes=0))
    own = backbone(dinov2(reference, registers), tmp_path / "dinov2_vits14_pretrain.pth", name)
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(own.model.state_dict()[key], value)


# Other sizes


@torch.inference_mode()
def test_positions_of_another_input_size_are_interpolated(whole, tmp_path):
    larger = shaken(timm.create_model(VIT_TIMM, img_size=224))
    own = backbone(larger.state_dict(), tmp_path / "224.pth")
    assert own.model.pos_embed.shape == whole.pos_embed.shape != larger.pos_embed.shape
    expected = timm.layers.resample_abs_pos_embed(larger.pos_embed, [10, 10], num_prefix_tokens=1)
    torch.testing.assert_close(own.model.pos_embed, expected)
    torch.testing.assert_close(own.model.blocks[0].attn.qkv.weight, larger.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
@torch.inference_mode()
def test_an_open_clip_folder_of_another_input_size(precision, tmp_path):
    write_folder(tmp_path, clip(VIT | {"image_size": 64}))
    published = shaken(open_clip.create_model(f"local-dir:{tmp_path}")).to(precision)
    torch.save(published.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    write_folder(tmp_path, clip(VIT))
    own = encoder(f"local-dir:{tmp_path}").image_tower.positional_embedding
    assert (published.visual.positional_embedding.shape, own.shape) == ((17, 64), (5, 64))
    torch.testing.assert_close(own[0], published.visual.positional_embedding[0].float())
    mean = published.visual.positional_embedding[1:].float().mean().item()
    assert own[1:].mean().item() == pytest.approx(mean, abs=0.02)


@torch.inference_mode()
def test_an_open_clip_folder_around_timms_tower_of_another_input_size(tmp_path):
    write_folder(tmp_path, clip(TIMM_VIT | {"timm_pool": "token", "timm_proj": "linear"}, custom_text=True))
    state = shaken(open_clip.create_model(f"local-dir:{tmp_path}")).state_dict()
    larger = torch.randn(1, 1 + 14 * 14, 64, generator=torch.Generator().manual_seed(0))
    torch.save(state | {"visual.trunk.pos_embed": larger}, tmp_path / "open_clip_pytorch_model.bin")
    own = encoder(f"local-dir:{tmp_path}").image_tower.trunk.pos_embed
    torch.testing.assert_close(own, timm.layers.resample_abs_pos_embed(larger, [10, 10], num_prefix_tokens=1))


# Names of places


@pytest.mark.parametrize("name", ["timm/", "hf-hub:timm/", "hf_hub:timm/", "https://huggingface.co/timm/"])
def test_a_model_of_timms_is_named_without_its_repository(name):
    with pytest.raises(ValueError, match=r"Did you mean vit_small_patch14_dinov2\.lvd142m, with pretrained: default"):
        encoder(f"{name}vit_small_patch14_dinov2.lvd142m", "timm")


@pytest.mark.parametrize(
    "name",
    ["laion/CLIP-x.1", "hf_hub:laion/CLIP-x.1", "HF-HUB:laion/CLIP-x.1", "https://huggingface.co/laion/CLIP-x.1/", "huggingface.co/laion/CLIP-x.1"],
)  # fmt: skip
def test_a_repository_that_is_spelled_in_another_way_is_told(name):
    with pytest.raises(ValueError, match=r"open_clip has no model .* Did you mean hf-hub:laion/CLIP-x\.1\?"):
        encoder(name)


def test_openais_own_names_are_told():
    with pytest.raises(ValueError, match=r"open_clip has no model 'ViT-B/32'\. Did you mean ViT-B-32\?"):
        encoder("ViT-B/32")


def test_a_folder_that_is_spelled_as_a_model_is_told(tmp_path):
    write_folder(tmp_path, clip(VIT))
    with pytest.raises(ValueError, match=f"Did you mean local-dir:{tmp_path}"):
        encoder(str(tmp_path))


# OpenAI's TorchScript


class AsOpenAI(nn.Module):
    """A CLIP with the numbers that OpenAI's archives hold beside its weights."""

    def __init__(self, model):
        super().__init__()
        self.visual, self.transformer = model.visual, model.transformer
        self.token_embedding, self.ln_final = model.token_embedding, model.ln_final
        for name in ("positional_embedding", "text_projection", "logit_scale"):
            setattr(self, name, getattr(model, name))
        for name in ("input_resolution", "context_length", "vocab_size"):
            self.register_buffer(name, torch.tensor(32))

    def forward(self, image):
        return self.visual(image)


@pytest.fixture
def tiny_b32(monkeypatch):
    for name, more in (("ViT-B-32", {}), ("ViT-B-32-quickgelu", {"quick_gelu": True})):
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, clip(VIT) | more)
    return shaken(open_clip.create_model("ViT-B-32")).half().float()


@pytest.fixture
def archive(tiny_b32, tmp_path):
    traced = torch.jit.trace(AsOpenAI(copy.deepcopy(tiny_b32)), images(32), check_trace=False)
    traced.half().save(str(tmp_path / "ViT-B-32.pt"))
    return tmp_path / "ViT-B-32.pt"


@torch.inference_mode()
def test_openais_own_file_is_read_without_running_it(archive, tiny_b32, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", None)
    own = encoder("ViT-B-32", pretrained=str(archive), preprocess="openai")
    for key, value in tiny_b32.state_dict().items():
        if not key.startswith("visual.proj"):
            torch.testing.assert_close(own.model.state_dict()[key], value)
    torch.testing.assert_close(own.projection.matrix, tiny_b32.visual.proj)


def test_openais_own_file_in_a_folder(archive, tiny_b32, tmp_path):
    write_folder(tmp_path, clip(VIT))
    own = encoder(f"local-dir:{tmp_path}")
    torch.testing.assert_close(own.projection.matrix, tiny_b32.visual.proj)
    torch.save({}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"several checkpoints \(ViT-B-32\.pt, other\.pt\)"):
        encoder(f"local-dir:{tmp_path}")


@pytest.mark.filterwarnings("ignore")
def test_what_torch_reads_of_an_archive(archive):
    reference = torch.jit.load(archive).state_dict()
    own = read_torchscript(archive)
    assert own.keys() == reference.keys() and "visual.proj" in own
    assert all(torch.equal(own[name], value) for name, value in reference.items())


def rewritten(archive: Path, change) -> Path:
    """The archive with its members' content changed: change(name, content) -> content."""
    with zipfile.ZipFile(archive) as old:
        members = [(info, change(info.filename, old.read(info))) for info in old.infolist()]
    with zipfile.ZipFile(archive, "w") as new:
        for info, content in members:
            new.writestr(info, content)
    return archive


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, content: content.replace(b"ctorch\nHalfStorage", b"cposix\nsystem") if "pkl" in name else content, "never run"),
        (lambda name, content: content[:1] if "/data/" in name else content, "damaged"),
        (lambda name, content: content[:100] if name.endswith("data.pkl") else content, "damaged"),
    ],
    ids=["names a function", "storages too short", "description cut off"],
)  # fmt: skip
def test_an_archive_that_is_no_data_is_refused(change, message, archive, tiny_b32):
    with pytest.raises(ValueError, match=message) as error:
        encoder("ViT-B-32", pretrained=str(rewritten(archive, change)), preprocess="openai")
    assert "\n" not in str(error.value) and "weights_only" not in str(error.value)


# JAX


@torch.inference_mode()
def test_a_vision_transformer_of_jax(tmp_path):
    model = shaken(timm.create_model(VIT_TIMM, num_classes=0))
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    heads, width = model.blocks[0].attn.num_heads, model.embed_dim
    arrays = {
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
    }
    for number in range(len(model.blocks)):
        ours, theirs = f"blocks.{number}.", f"Transformer/encoderblock_{number}/"
        qkv = state[ours + "attn.qkv.weight"].reshape(3, heads, width // heads, width)
        bias = state[ours + "attn.qkv.bias"].reshape(3, heads, width // heads)
        for each, name in enumerate(("query", "key", "value")):
            arrays[f"{theirs}MultiHeadDotProductAttention_1/{name}/kernel"] = qkv[each].transpose(2, 0, 1)
            arrays[f"{theirs}MultiHeadDotProductAttention_1/{name}/bias"] = bias[each]
        out = state[ours + "attn.proj.weight"].T.reshape(heads, width // heads, width)
        arrays[f"{theirs}MultiHeadDotProductAttention_1/out/kernel"] = out
        arrays[f"{theirs}MultiHeadDotProductAttention_1/out/bias"] = state[ours + "attn.proj.bias"]
        for theirs_norm, norm in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
            arrays[f"{theirs}{theirs_norm}/scale"] = state[f"{ours}{norm}.weight"]
            arrays[f"{theirs}{theirs_norm}/bias"] = state[f"{ours}{norm}.bias"]
        for layer in (0, 1):
            arrays[f"{theirs}MlpBlock_3/Dense_{layer}/kernel"] = state[f"{ours}mlp.fc{layer + 1}.weight"].T
            arrays[f"{theirs}MlpBlock_3/Dense_{layer}/bias"] = state[f"{ours}mlp.fc{layer + 1}.bias"]
    np.savez(tmp_path / "B_16.npz", **arrays)
    own = encoder(VIT_TIMM, "timm", pretrained=str(tmp_path / "B_16.npz"))
    torch.testing.assert_close(own.encode_image(images(160)), features(model, images(160)))


@pytest.mark.parametrize("name", ["repvit_m1", "caformer_s18", "levit_128s"])  # classifiers of several layers
@torch.inference_mode()
def test_a_whole_classifier_is_left_out(name, tmp_path):
    published = timm.create_model(name, num_classes=7)
    own = backbone(published.state_dict(), tmp_path / "fine_tuned.pth", name)
    for key, value in own.model.state_dict().items():
        assert torch.equal(value, published.state_dict()[key])


# What does not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {"model": {"a.b": torch.zeros(2)}}, r"missing, 1 \(a\.b\) unknown"),
        (lambda state: {"epoch": 3}, "holds no tensors by their names"),
        (lambda state: [torch.zeros(2)], "holds no tensors by their names"),
        (lambda state: without_head(state) | {"blocks.0.norm1.weight": torch.zeros(3)}, r"norm1\.weight: \(3,\) in the file, \(64,\)"),
        (lambda state: {n: v for n, v in state.items() if "blocks.0" not in n}, r"12 \(blocks\.0\.[\w., ]+…\) missing"),
        (lambda state: shaken(timm.create_model("test_resnet")).state_dict(), "Name the model and the library"),
    ],
    ids=["other names", "no weights", "a list", "a shape", "a block less", "another model"],
)  # fmt: skip
def test_what_does_not_fit_is_one_clear_line(change, message, whole, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        backbone(change(whole.state_dict()), tmp_path / "weights.pth")
    said = str(error.value)
    assert "\n" not in said and "weights_only" not in said and re.search(rf"{VIT_TIMM}.*weights\.pth", said)


@pytest.mark.parametrize("kept", [0, 1, 7, 100, 0.5, 0.999])
@pytest.mark.parametrize("save", [torch.save, save_file])
def test_a_file_that_was_cut_off_is_damaged(kept, save, whole, tmp_path):
    path = tmp_path / "weights.safetensors"
    save(whole.state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(ValueError, match=r"weights\.safetensors cannot be loaded: the file is damaged") as error:
        encoder(VIT_TIMM, "timm", pretrained=str(path))
    assert "\n" not in str(error.value) and "weights_only" not in str(error.value)


def test_a_whole_module_is_never_unpickled(whole, tmp_path):
    with pytest.raises(ValueError, match="never run") as error:
        backbone(whole, tmp_path / "module.pth")
    assert "weights_only" not in str(error.value)
