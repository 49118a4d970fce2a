"""Layers and patch tokens of transformers' models, against models cut off after a block, plain loops, and open_clip."""

from __future__ import annotations

import json

import pytest
import tiny_transformers
import torch
import transformers
from tiny_transformers import KINDS, VISION, pixels, shaken, spec
from torch.nn.functional import normalize

from clip_ood.backbones.create import create_backbone
from clip_ood.backbones.inside import check_inside, run_inside
from clip_ood.backbones.shape import shapes_inside
from clip_ood.backbones.transformers_config import TEXTS
from clip_ood.backbones.transformers_tower import Tower
from clip_ood.errors import UserError
from clip_ood.model import encode
from clip_ood.outputs import Inside

STAGED = {
    "convnext": KINDS["convnext"][0],
    "convnextv2": KINDS["convnext"][0],
    "dinov3_convnext": KINDS["convnext"][0],
    "resnet": KINDS["resnet"][0],
    "regnet": KINDS["resnet"][0] | {"groups_width": 8, "layer_type": "x"},
    "bit": {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_groups": 4},
}
BLOCKS = {kind: described for kind, (described, _) in KINDS.items() if kind not in STAGED} | {
    **dict.fromkeys(("ijepa", "vit_msn", "data2vec-vision", "clip_vision_model", "siglip_vision_model"), VISION),
    **{kind: KINDS["clip"][0] for kind in ("altclip", "chinese_clip")},
    "beit by its class": VISION | {"use_mean_pooling": False},
    "siglip without a head": {"vision_config": VISION | {"vision_use_head": False}},
}


def described(kind, **changes):
    own = json.loads(json.dumps(BLOCKS.get(kind) or STAGED[kind]))
    changed = own.get("vision_config", own)
    changed.update(changes)
    return own


def made(kind, **changes):
    """The whole model of a type with tiny random weights, and its tower."""
    name = kind.split()[0]
    torch.manual_seed(0)
    model = shaken(transformers.AutoModel.from_config(transformers.CONFIG_MAPPING[name](**described(kind, **changes))))
    return model, Tower(model.vision_model if name in TEXTS else model, name).eval()


@pytest.mark.parametrize("kind", BLOCKS)
@torch.inference_mode()
def test_a_layer_is_g_of_the_model_that_ends_there(kind):
    _, tower = made(kind, num_hidden_layers=3)
    g, layers, _ = run_inside(tower, pixels(kind), Inside(layers=("1", "2", "3")))
    assert torch.equal(g, tower(pixels(kind)))
    assert torch.equal(layers["3"], g)
    for count in (1, 2):
        _, cut = made(kind, num_hidden_layers=count)
        left = cut.load_state_dict(tower.state_dict(), strict=False)
        assert not left.missing_keys and left.unexpected_keys
        torch.testing.assert_close(layers[str(count)], cut(pixels(kind)), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(layers[str(count)], g, atol=1e-2)


@torch.inference_mode()
def test_siglip_without_its_head_is_the_mean_over_patches():
    model, tower = made("siglip without a head")
    last = model.vision_model(pixels("siglip")).last_hidden_state
    torch.testing.assert_close(tower(pixels("siglip")), last.mean(dim=1))


@pytest.mark.parametrize("kind", STAGED)
@torch.inference_mode()
def test_a_stage_is_the_mean_over_its_positions(kind):
    model, tower = made(kind)
    g, layers, tokens = run_inside(tower, pixels(kind), Inside(layers=("1", "2", "3", "4"), tokens=("value", "output")))
    assert torch.equal(g, tower(pixels(kind)))
    states = model(pixels(kind), output_hidden_states=True).hidden_states[1:]
    for found, state in zip(layers.values(), states, strict=True):
        torch.testing.assert_close(found, state.mean(dim=(2, 3)))
    assert torch.equal(tokens["value"], tokens["output"])
    assert tokens["output"].shape == (3, states[-1].shape[2] * states[-1].shape[3], 32)
    if kind in ("resnet", "regnet", "bit"):  # the mean is all their pooling does
        torch.testing.assert_close(tokens["output"].mean(dim=1), g)


@torch.inference_mode()
def test_blocks_are_the_hidden_states_of_transformers():
    for kind, norm in (("clip_vision_model", "post_layernorm"), ("dinov2", "layernorm"), ("dinov3_vit", "norm")):
        model, tower = made(kind)
        _, layers, _ = run_inside(tower, pixels(kind), Inside(layers=("1", "2")))
        states = model(pixels(kind), output_hidden_states=True).hidden_states
        for found, state in zip(layers.values(), states[1:], strict=True):
            torch.testing.assert_close(found, getattr(model, norm)(state[:, 0]))


def _of_patches(kind, model, images):
    """What a model makes of each patch of its last hidden state, patch by patch."""
    vision = getattr(model, "vision_model", model)
    last = vision(images).last_hidden_state
    if kind in ("clip", "metaclip_2", "chinese_clip", "altclip", "clip_vision_model"):
        return vision.post_layernorm(last[:, 1:])
    before = {"siglip": 0, "siglip_vision_model": 0, "ijepa": 0, "deit": 2, "dinov2_with_registers": 4, "dinov3_vit": 3}
    patches = last[:, before.get(kind, 1) :]
    if kind in ("siglip", "siglip_vision_model"):
        return torch.stack([vision.head(patches[:, place : place + 1]) for place in range(16)], dim=1)
    if kind == "beit":
        return vision.pooler.layernorm(patches)
    if kind in ("vit", "deit"):
        return torch.tanh(vision.pooler.dense(patches))
    return patches


@pytest.mark.parametrize("kind", [kind for kind in BLOCKS if " " not in kind])
@torch.inference_mode()
def test_output_is_each_patch_alone_as_the_model_pools(kind):
    model, tower = made(kind)
    _, _, tokens = run_inside(tower, pixels(kind), Inside(tokens=("output",)))
    expected = _of_patches(kind, model, pixels(kind))
    assert expected.shape == (3, 16, 32)
    torch.testing.assert_close(tokens["output"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "metaclip_2", "chinese_clip", "altclip", "clip_vision_model"])
@torch.inference_mode()
def test_value_is_each_patch_by_a_last_block_that_sees_it_alone(kind):
    model, tower = made(kind)
    vision = getattr(model, "vision_model", model)
    _, _, tokens = run_inside(tower, pixels(kind), Inside(tokens=("value",)))
    before = vision(pixels(kind), output_hidden_states=True).hidden_states[-2]
    block = vision.encoder.layers[-1]
    alone = [block(before[:, place : place + 1], None) for place in range(1, 17)]
    expected = vision.post_layernorm(torch.cat(alone, dim=1))
    torch.testing.assert_close(tokens["value"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["siglip", "beit", "ijepa"])
@torch.inference_mode()
def test_value_is_output_where_patches_are_pooled(kind):
    _, _, tokens = run_inside(made(kind)[1], pixels(kind), Inside(tokens=("value", "output")))
    assert torch.equal(tokens["value"], tokens["output"])


@torch.inference_mode()
def test_clip_gives_what_open_clip_gives(tmp_path):
    model = tiny_transformers.make(tmp_path, "clip")
    theirs = tiny_transformers.as_open_clip(model)
    ours = create_backbone(spec(tmp_path))
    wanted = Inside(layers=("1", "2"), tokens=("output", "value"))
    _, layers, tokens = run_inside(theirs.visual, pixels("clip"), wanted)
    found = encode(ours, pixels("clip"), wanted)
    for name, projected in layers.items():
        torch.testing.assert_close(found.layers[name], projected, rtol=1e-4, atol=1e-5)
    for kind, patches in tokens.items():
        expected = normalize(patches @ theirs.visual.proj, dim=2)
        torch.testing.assert_close(found.tokens[kind], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found.tokens["value"], found.tokens["output"], atol=1e-2)


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2_with_registers", "beit", "convnext"])
def test_shapes_are_known_without_weights(kind, tmp_path):
    tiny_transformers.make(tmp_path, kind)
    own = spec(tmp_path)
    wanted = Inside(layers=("1",), tokens=("output",))
    told = shapes_inside(own, wanted)
    with torch.inference_mode():
        outputs = encode(create_backbone(own), pixels(kind), wanted)
    assert told == {name: tuple(value.shape[1:]) for name, value in outputs.tensors() if "." in name}
    assert set(told) == {"layers.1", "tokens.output"}


@pytest.mark.parametrize(
    ("kind", "wanted", "why"),
    [
        ("clip", Inside(layers=("3",)), "layer 3: clip has layers 1 to 2"),
        ("dinov2", Inside(tokens=("value",)), "dinov2 pools by its class token.* take output"),
        ("vit", Inside(tokens=("value",)), "vit pools by its class token.* take output"),
        ("dinov3_vit", Inside(tokens=("both",)), "'both', expected value or output"),
    ],
)
def test_what_a_model_does_not_have_is_said(kind, wanted, why):
    with pytest.raises(UserError, match=why):
        check_inside(made(kind)[1], wanted, kind)


@pytest.mark.parametrize("kind", ["swin", "hiera", "focalnet", "pvt", "mobilenet_v2", "efficientnet", "poolformer"])
def test_models_of_other_makes_show_nothing(kind):
    with torch.device("meta"):
        tower = Tower(transformers.AutoModel.from_config(transformers.CONFIG_MAPPING[kind]()), kind)
    for wanted in (Inside(layers=("1",)), Inside(tokens=("output",))):
        with pytest.raises(UserError, match=rf"{kind} does not show what it computes inside .*{wanted.arrays[0]}"):
            check_inside(tower, wanted, kind)
