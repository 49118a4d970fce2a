"""Weights of encoders out of files and caches: what fits is loaded, what does not is refused, and no code of a file runs."""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub.constants
import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_towers import OPENAI, VIT, clip, encoder, has_quick_gelu, images, prepared, shaken, write_folder

# Files


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
    write_folder(tmp_path, clip(VIT))
    torch.save(Bomb(tmp_path / "exploded"), tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match=rf"{tmp_path}.*never run"):
        encoder(f"local-dir:{tmp_path}")
    assert not (tmp_path / "exploded").exists()


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


# Names


def test_a_mistyped_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean ViT-B-16"):
        encoder("ViT-B-61")


@pytest.mark.parametrize("keys", [{"pretrained": "laion2b_s34b_b79k"}, {"preprocess": "datacomp_xl_s13b_b90k"}])
def test_a_quickgelu_architecture_refuses_weights_trained_with_gelu(keys):
    with pytest.raises(ValueError, match="GELU, not QuickGELU: use model ViT-B-32"):
        encoder("ViT-B-32-quickgelu", **keys)


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


def test_a_cached_repository_needs_its_weights(hub, monkeypatch):
    folder = hub("someone/tiny")
    write_folder(folder, clip(VIT))
    with pytest.raises(ConnectionError, match="someone/tiny"):
        encoder("hf-hub:someone/tiny")
    with (
        monkeypatch.context() as other_process,
        pytest.raises(ValueError, match=r"someone/tiny has or gives no open_clip_model"),
    ):
        other_process.setenv("LOCAL_RANK", "1")
        encoder("hf-hub:someone/tiny")
    reference = shaken(open_clip.create_model(f"local-dir:{folder}", load_weights=False))
    save_file(reference.state_dict(), folder / "open_clip_model.safetensors")
    assert torch.equal(encoder("hf-hub:someone/tiny").projection.matrix, reference.visual.proj)
