"""The image tower while it is fine-tuned: learning rates by layer, checkpointing, compiling, batch norm."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import tiny_clip
import torch
from fine_tuning import STILL, assert_same_state

from clip_ood.backbones.create import create_backbone
from clip_ood.config.schema import BackboneConfig
from clip_ood.config.schema import FineTune as Settings
from clip_ood.lightning_modules.fine_tune import FineTune
from clip_ood.lightning_modules.layer_decay import depths, parameter_groups

pytestmark = pytest.mark.slow

TOWERS = [  # parameters from stem to head, and the depth of the last
    (
        "open_clip",
        "ViT-B-32",
        ["class_embedding", "transformer.resblocks.0.ln_1.weight", "transformer.resblocks.11.ln_1.weight", "ln_post.bias"],
        13,
    ),
    ("open_clip", "RN50", ["conv1.weight", "layer1.0.bn1.bias", "layer1.1.bn1.bias", "layer4.0.bn1.bias", "attnpool.positional_embedding"], 17),
    (
        "open_clip",
        "convnext_base",
        ["trunk.stem.0.weight", "trunk.stages.0.blocks.0.gamma", "trunk.stages.1.downsample.0.bias", "trunk.stages.1.blocks.0.gamma", "trunk.stages.2.blocks.26.gamma", "trunk.head.norm.weight"],
        40,
    ),
    ("timm", "vit_tiny_patch16_224", ["pos_embed", "blocks.0.norm1.weight", "blocks.11.norm1.weight", "norm.weight"], 13),
    ("timm", "tf_efficientnet_lite0", ["conv_stem.weight", "blocks.0.0.bn1.bias", "blocks.2.0.bn1.bias", "blocks.2.1.bn1.bias", "blocks.6.0.bn1.bias", "conv_head.weight"], 17),
    (
        "timm",
        "swin_tiny_patch4_window7_224",
        ["patch_embed.proj.weight", "layers.0.blocks.0.norm1.bias", "layers.1.downsample.norm.bias", "layers.1.blocks.0.norm1.bias", "layers.3.blocks.1.norm1.bias", "norm.weight"],
        16,
    ),
]  # fmt: skip


@pytest.mark.parametrize("library, model, path, last", TOWERS, ids=[tower[1] for tower in TOWERS])
def test_learning_rates_fall_from_head_to_stem_and_vectors_have_no_decay(library, model, path, last):
    with torch.device("meta"):
        tower = create_backbone(BackboneConfig(library=library, model=model)).train_images().image_tower
        head = torch.nn.Linear(8, 3)
    depth = depths(tower)
    along = [depth[name] for name in path]
    assert along[0] == 0 and along[-1] == last == max(depth.values())
    assert all(before < after for before, after in pairwise(along))
    groups = parameter_groups(tower, head, lr=1.0, layer_decay=0.5, weight_decay=0.1)
    placed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(placed) == sorted(map(id, [*tower.parameters(), *head.parameters()]))
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert {rate[id(parameter)] for parameter in head.parameters()} == {1.0}
    assert all(rate[id(parameter)] == 0.5 ** (last + 1 - depth[name]) for name, parameter in tower.named_parameters())
    decayed = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for name, parameter in tower.named_parameters():
        exempt = parameter.ndim == 1 or any(word in name for word in ("embedding", "pos_embed", "cls_token"))
        exempt = exempt or "relative_position_bias_table" in name
        if name != "attnpool.positional_embedding":  # open_clip's ResNet exempts none
            assert decayed[id(parameter)] == (0.0 if exempt else 0.1), name


def test_one_learning_rate_serves_towers_without_blocks():
    tower = torch.nn.Sequential(torch.nn.Linear(3, 4))
    groups = parameter_groups(tower, torch.nn.Linear(4, 2), lr=0.3, layer_decay=1, weight_decay=0.1)
    assert {group["lr"] for group in groups} == {0.3} and sum(len(group["params"]) for group in groups) == 4
    with pytest.raises(ValueError, match=r"Sequential shows no blocks; set method.finetune.layer_decay to 1"):
        parameter_groups(tower, torch.nn.Linear(4, 2), lr=0.3, layer_decay=0.9, weight_decay=0.1)


def fresh(root, model=None, **settings) -> FineTune:
    library = "timm" if model else "open_clip"
    backbone = create_backbone(BackboneConfig(library=library, model=model or f"local-dir:{root}/clip"))
    width = backbone.encode_image(torch.zeros(1, 3, *backbone.preprocessing.size)).shape[1]
    return FineTune(Settings(**STILL, **settings), backbone, width, 0, class_names=tiny_clip.CLASSES)


def gradients(module: FineTune) -> dict[str, torch.Tensor]:
    images = torch.randn(4, 3, *module.backbone.preprocessing.size, generator=torch.Generator().manual_seed(0))
    module._logits(images).square().sum().backward()
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("model", [None, "test_vit"])
def test_checkpointing_gives_the_same_gradients(root, model):
    kept = gradients(fresh(root, model))
    again = fresh(root, model, gradient_checkpointing=True)
    blocks = again.backbone.image_tower.blocks if model else again.backbone.image_tower.transformer.resblocks
    passes = []
    blocks[0].register_forward_pre_hook(lambda *_: passes.append(1))
    assert_same_state(kept, gradients(again))
    assert len(passes) == 2  # forward, and again in the backward pass
    tower = {f"backbone.{name}" for name, p in again.backbone.named_parameters() if p.requires_grad}
    assert tower | {"head.weight", "head.bias"} == kept.keys()


@pytest.mark.parametrize(
    "library, model, tower", [("open_clip", "RN50", "ModifiedResNet"), ("timm", "mixer_s32_224", "")]
)
def test_a_tower_that_cannot_checkpoint_says_so(library, model, tower):
    with torch.device("meta"):
        backbone = create_backbone(BackboneConfig(library=library, model=model))
    if tower:
        with pytest.raises(ValueError, match=f"gradient_checkpointing: {tower} does not offer it; set it to false"):
            backbone.train_images(gradient_checkpointing=True)


def test_compiling_keeps_outputs_names_and_copies(root, monkeypatch):
    graphs, compile = [], torch.nn.Module.compile

    def keep(graph, _):  # in place of minutes of making code
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile(module, backend=keep))
    plain, compiled = fresh(root), fresh(root, compile=True)
    assert_same_state(gradients(plain), gradients(compiled))
    assert graphs and compiled.state_dict().keys() == plain.state_dict().keys()
    average = torch.optim.swa_utils.AveragedModel(compiled)
    assert_same_state(average.module.state_dict(), plain.state_dict())


@pytest.mark.parametrize("freeze", [False, True])
def test_batch_norm_can_keep_its_statistics(root, freeze):
    module = fresh(root, "test_resnet", freeze_batch_norm=freeze, layer_decay=1)
    before = copy.deepcopy(dict(module.named_buffers()))
    module.train()
    module._logits(torch.randn(4, 3, *module.backbone.preprocessing.size))
    kept = [torch.equal(before[name], buffer) for name, buffer in module.named_buffers() if "running" in name]
    assert kept and all(kept) == freeze == any(kept)
