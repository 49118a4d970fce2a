"""Layers and patch tokens: the last layer is g, and tokens are those of the methods' authors and of one patch alone."""

import json

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn.functional import linear, normalize

from clip_ood.backbones.create import create_backbone
from clip_ood.backbones.inside import check_inside
from clip_ood.config.schema import BackboneConfig
from clip_ood.errors import UserError
from clip_ood.model import encode
from clip_ood.outputs import Inside

OWN = {"layers": 3, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
TOWERS = {  # of open_clip, tiny
    "ViT": OWN,
    "RN": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 16, "image_size": 64},
    "SigLIP": {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none", "image_size": 160},
    "EVA": {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear", "image_size": 160},
    "CoCa": OWN | {"attentional_pool": True, "attn_pooler_heads": 4},
}
VITS = [
    ("timm", "test_vit"),
    ("timm", "eva02_tiny_patch14_224"),
    ("timm", "vit_small_patch16_dinov3"),
    ("open_clip", "ViT"),
]
SEQUENCES = [*VITS, ("open_clip", "SigLIP"), ("open_clip", "EVA")]
MAPS = [
    ("timm", "resnet18"),
    ("timm", "convnext_atto"),
    ("timm", "swin_tiny_patch4_window7_224"),
    ("timm", "efficientnet_lite0"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Makes an encoder with random weights, of open_clip those of `TOWERS`."""

    def create(library, model, **more):
        if library == "open_clip":
            folder = tmp_path_factory.mktemp(model)
            text = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
            width = 96 if model == "SigLIP" else 24
            described = {"embed_dim": width, "vision_cfg": TOWERS[model], "text_cfg": text, "custom_text": True}
            written = {"model_cfg": described, "preprocess_cfg": {"size": TOWERS[model]["image_size"]}}
            (folder / "open_clip_config.json").write_text(json.dumps(written))
            torch.manual_seed(0)
            reference = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
            save_file(reference.state_dict(), folder / "open_clip_model.safetensors")
            model = f"local-dir:{folder}"
        return create_backbone(BackboneConfig(library=library, model=model, **more))

    return create


def pictures(backbone, count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *backbone.preprocessing.size, generator=generator)


@pytest.mark.parametrize(("library", "model"), VITS)
@torch.inference_mode()
def test_the_last_block_is_g_and_nothing_else_changes(library, model, made):
    backbone = made(library, model)
    images = pictures(backbone)
    last = str(len(_blocks(backbone)))
    outputs = encode(backbone, images, Inside(layers=("1", last), tokens=("output",)))
    plain = encode(backbone, images)
    torch.testing.assert_close(outputs.features, plain.features, rtol=0, atol=0)
    torch.testing.assert_close(outputs.layers[last], plain.features, rtol=1e-6, atol=1e-6)
    assert outputs.layers["1"].shape == plain.features.shape
    assert not torch.equal(outputs.layers["1"], plain.features)
    if plain.embeddings is not None:
        assert torch.equal(outputs.embeddings, plain.embeddings)


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean"])
@torch.inference_mode()
def test_the_last_block_is_g_of_any_pooling(pooling, made):
    backbone = made("timm", "test_vit", pooling=pooling)
    outputs = encode(backbone, pictures(backbone), Inside(layers=("6",)))
    torch.testing.assert_close(outputs.layers["6"], outputs.features, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("library", "model"), MAPS)
@torch.inference_mode()
def test_stages_are_the_means_over_positions_that_timm_gives(library, model, made):
    backbone = made(library, model)
    images = pictures(backbone)
    trunk = backbone.model
    count = len(trunk.feature_info if isinstance(trunk.feature_info, list) else trunk.feature_info.info)
    outputs = encode(backbone, images, Inside(layers=tuple(map(str, range(1, count + 1)))))
    for name, expected in zip(
        outputs.layers, trunk.forward_intermediates(images, intermediates_only=True), strict=True
    ):
        torch.testing.assert_close(outputs.layers[name], expected.mean(dim=(2, 3)), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_blocks_are_those_that_timm_gives(made):
    backbone = made("timm", "test_vit", pooling="cls")
    images = pictures(backbone)
    outputs = encode(backbone, images, Inside(layers=("2", "4")))
    taken = backbone.model.model.forward_intermediates(
        images, indices=[1, 3], norm=True, return_prefix_tokens=True, intermediates_only=True
    )
    for name, (_, prefix) in zip(("2", "4"), taken, strict=True):
        torch.testing.assert_close(outputs.layers[name], prefix[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", ["ViT", "RN"])
@torch.inference_mode()
def test_value_tokens_are_those_of_the_authors(model, made):
    """A naive double of the forward pass of GL-MCM's and LoCoOp's published model."""
    backbone = made("open_clip", model)
    images = pictures(backbone)
    expected = _authors_resnet(backbone, images) if model == "RN" else _authors_vit(backbone, images)
    tokens = encode(backbone, images, Inside(tokens=("value",))).tokens["value"]
    torch.testing.assert_close(tokens, normalize(expected.float(), dim=2), rtol=1e-5, atol=1e-5)


def _authors_vit(backbone, images):
    tower = backbone.model.visual
    x = tower._embeds(images)
    for block in tower.transformer.resblocks:
        y = linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)  # q, k and v in one
        batch, length, width = y.shape
        y = y.view(batch, length, 3, width // 3).permute(2, 0, 1, 3).reshape(3 * batch, length, width // 3)
        values = linear(y, block.attn.out_proj.weight, block.attn.out_proj.bias)[2 * batch :] + x
        values = values + block.mlp(block.ln_2(values))
        x = block(x)
    return tower.ln_post(values)[:, 1:] @ backbone.projection.matrix


def _authors_resnet(backbone, images):
    tower = backbone.model.visual
    x = tower.layer4(tower.layer3(tower.layer2(tower.layer1(tower.stem(images)))))
    pool = tower.attnpool
    return pool.c_proj(pool.v_proj(x.permute(0, 2, 3, 1))).flatten(1, 2)


@pytest.mark.parametrize(("library", "model"), SEQUENCES)
@torch.inference_mode()
def test_output_tokens_lie_where_embeddings_lie(library, model, made):
    backbone = made(library, model)
    outputs = encode(backbone, pictures(backbone), Inside(tokens=("output",)))
    tokens = outputs.tokens["output"]
    joint = outputs.features if outputs.embeddings is None else outputs.embeddings
    assert tokens.ndim == 3
    assert tokens.shape[::2] == joint.shape
    torch.testing.assert_close(tokens.norm(dim=2), torch.ones(tokens.shape[:2]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("library", "model"), MAPS)
@torch.inference_mode()
def test_positions_of_a_map_are_patches_by_both_names(library, model, made):
    backbone = made(library, model)
    images = pictures(backbone)
    outputs = encode(backbone, images, Inside(tokens=("value", "output")))
    assert torch.equal(outputs.tokens["value"], outputs.tokens["output"])
    if model == "resnet18":  # g is the mean of its positions, which are not scaled before
        final = backbone.model.forward_features(images).flatten(2).mT
        torch.testing.assert_close(outputs.tokens["output"], normalize(final, dim=2), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(final.mean(dim=1), outputs.features, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_one_patch_of_an_attention_pooling_is_the_pooling_of_an_image_of_that_patch(made):
    backbone = made("open_clip", "SigLIP")
    tower = backbone.model.visual
    images = pictures(backbone, 1)
    place = 5 + tower.trunk.num_prefix_tokens
    patch = tower.trunk.forward_features(images)[:, place : place + 1]  # (1, 1, D)
    expected = backbone.project(tower.head(tower.trunk.forward_head(patch)))
    tokens = encode(backbone, images, Inside(tokens=("value",))).tokens["value"]
    torch.testing.assert_close(tokens[:, 5], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("library", "model", "wanted", "why"),
    [
        ("timm", "test_vit", Inside(layers=("7",)), "layer 7: test_vit has layers 1 to 6"),
        ("timm", "test_vit", Inside(layers=("0",)), "layer 0: test_vit has layers 1 to 6"),
        ("timm", "test_vit", Inside(tokens=("value",)), "pools by its class token.* take output"),
        ("timm", "test_vit", Inside(tokens=("values",)), "'values', expected value or output"),
        ("open_clip", "RN", Inside(tokens=("output",)), "by value alone"),
        ("open_clip", "CoCa", Inside(tokens=("value",)), "gives no tokens"),
    ],
)
def test_what_an_encoder_does_not_have_is_said(library, model, wanted, why, made):
    backbone = made(library, model)
    with pytest.raises(UserError, match=why):
        check_inside(backbone.image_tower, wanted, model)


def test_a_module_of_ones_own_shows_nothing():
    with pytest.raises(UserError, match="mine does not show what it computes inside"):
        check_inside(torch.nn.Linear(2, 2), Inside(layers=("1",)), "mine")


def _blocks(backbone):
    tower = backbone.image_tower
    if isinstance(tower, open_clip.model.VisionTransformer):
        return tower.transformer.resblocks
    return (tower if isinstance(tower, timm.models.VisionTransformer | timm.models.Eva) else tower.trunk).blocks
