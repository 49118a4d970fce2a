"""Another pooling and another image size of an encoder: what g then is, what is refused, and that nothing stored is taken for another's."""

from __future__ import annotations

import json

import judged_run
import pytest
import timm
import tiny_clip
import torch
from PIL import Image

from clip_ood import load
from clip_ood.backbones.create import create_backbone
from clip_ood.backbones.fingerprint import fingerprint
from clip_ood.backbones.shape import shape_of
from clip_ood.backbones.spec import ImageSpec
from clip_ood.config.loading import load_config
from clip_ood.detect.saved import SavedDetector
from clip_ood.errors import UserError

VIT = "test_vit"  # of timm, 160 px, patches of 16, a class token
REGISTERS = "vit_small_patch14_reg4_dinov2"
IMAGES = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))


def encoder(model=VIT, **keys):
    return create_backbone(ImageSpec("timm", model, **keys))


@torch.inference_mode()
def test_pooled_features_are_made_of_the_tokens_after_the_norm():
    own = encoder()
    tokens = own.model.forward_features(IMAGES)
    cls, mean = tokens[:, 0], tokens[:, 1:].mean(dim=1)
    assert torch.equal(own.encode_image(IMAGES), cls)  # timm's own pooling of this model
    for pooling, expected in (("cls", cls), ("mean", mean), ("cls+mean", torch.cat([cls, mean], dim=1))):
        assert torch.allclose(encoder(pooling=pooling).encode_image(IMAGES), expected, atol=1e-6)


@torch.inference_mode()
def test_registers_are_no_patches_and_a_norm_behind_the_pooling_stays():
    images = torch.randn(2, 3, 28, 28)
    own = encoder(REGISTERS, pooling="mean", image_size=28)
    tokens = own.model.model.forward_features(images)
    assert tokens.shape[1] == 1 + 4 + 4
    assert torch.allclose(own.encode_image(images), tokens[:, 5:].mean(dim=1), atol=1e-6)
    behind = encoder("beit_base_patch16_224", pooling="mean")
    images = torch.randn(1, 3, 224, 224)
    assert torch.allclose(behind.encode_image(images), encoder("beit_base_patch16_224").encode_image(images), atol=1e-5)


@torch.inference_mode()
def test_attention_pooling_is_the_models_own():
    images = torch.randn(1, 3, 224, 224)
    name = "vit_base_patch16_siglip_224"
    assert torch.allclose(
        encoder(name, pooling="map").encode_image(images), encoder(name).encode_image(images), atol=1e-6
    )
    with pytest.raises(UserError, match=f"cls: {name} has no class token; take mean"):
        encoder(name, pooling="cls")


@pytest.mark.parametrize(
    ("model", "keys", "told"),
    [
        ("resnet18", {"pooling": "mean"}, "resnet18 gives no token for each patch"),
        (VIT, {"pooling": "map"}, f"{VIT} has no attention pooling; take cls or mean"),
        (VIT, {"image_size": 150}, f"150 is no multiple of the 16 pixels of a patch of {VIT}"),
    ],
)
def test_what_an_encoder_cannot_do_is_told(model, keys, told):
    with pytest.raises(UserError, match=told):
        encoder(model, **keys)


def test_an_image_size_is_that_of_transform_and_position_embeddings():
    for model in (VIT, "resnet18"):
        own = encoder(model, image_size=96)
        assert own.transform(Image.new("RGB", (300, 200))).shape == (3, 96, 96) and own.preprocessing.size == (96, 96)
        assert own.encode_image(torch.zeros(1, 3, 96, 96)).shape[0] == 1
    before, after = encoder(), encoder(image_size=96)
    resampled = timm.layers.resample_abs_pos_embed(before.model.pos_embed, [6, 6], num_prefix_tokens=1)
    assert torch.allclose(after.model.pos_embed, resampled, atol=1e-6)


def test_an_open_clip_tower_takes_another_size_and_keeps_its_pooling(root):
    spec = ImageSpec("open_clip", f"local-dir:{root}/clip", image_size=48)
    own = create_backbone(spec)
    assert own.preprocessing.size == (48, 48) and own.transform(Image.new("RGB", (60, 50))).shape == (3, 48, 48)
    features = own.encode_image(torch.zeros(2, 3, 48, 48))
    assert own.project(features).shape == (2, 16)
    small = create_backbone(ImageSpec("open_clip", f"local-dir:{root}/clip"))
    assert own.image_tower.positional_embedding.shape[0] == 37 != small.image_tower.positional_embedding.shape[0]
    assert torch.equal(own.image_tower.conv1.weight, small.image_tower.conv1.weight)
    assert shape_of(ImageSpec("open_clip", "ViT-B-16-SigLIP2-256", "webli", image_size=128)).features == 768
    with pytest.raises(UserError, match=r"backbone\.pooling: mean goes with encoders of timm"):
        create_backbone(ImageSpec("open_clip", "ViT-B-32", pooling="mean"))


def test_fingerprints_differ_and_those_of_before_stay(tmp_path):
    own = fingerprint(ImageSpec("timm", VIT), tmp_path / "hashes.json")
    assert "pooling" not in own and "image_size" not in own
    found = [own]
    for keys in ({"pooling": "mean"}, {"pooling": "cls"}, {"image_size": 96}):
        found.append(fingerprint(ImageSpec("timm", VIT, **keys), tmp_path / "hashes.json"))
    assert len({json.dumps(each) for each in found}) == 4


def test_a_run_judges_with_the_pooling_and_size_that_it_was_made_with(root):
    backbone = {"library": "timm", "model": VIT, "pooling": "cls+mean", "image_size": 48}
    run = judged_run.make(
        root, "pooled", backbone=backbone, evaluation={"with_encoder": True, "report": False, "figures": False}
    )
    spec = SavedDetector(run).encoder.spec
    assert (spec.pooling, spec.image_size) == ("cls+mean", 48)
    scores = judged_run.scores(run, "ood")
    for prediction in load(run, detector="all")([root / "data/near/0.png"]):
        assert prediction.score == pytest.approx(scores["0.png"][prediction.detector], rel=1e-4)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [("pooling", "max", "pooling"), ("image_size", "4", "image_size"), ("image_size", "large", "image_size")],
)
def test_wrong_values_are_told_with_the_config(root, key, value, told):
    with pytest.raises(UserError, match=told):
        load_config(tiny_clip.config(root, "wrong", judged_run.PROBE), [f"--backbone.{key}={value}"])
