"""Fine-tuning a tiny random CLIP: what is averaged, evaluated, kept and resumed; where randomness comes from; learning
rates a layer; where the head starts; what a wrong setting says."""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
from collections import Counter
from itertools import chain, pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_clip
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.nn.functional import normalize

import clip_ood.experiments.run
import eval as evaluation
import train
from clip_ood.backbones.backbone import Preprocessing
from clip_ood.backbones.create import create_backbone
from clip_ood.callbacks.averaging import MovingAverage, moving_average
from clip_ood.callbacks.ood_evaluation import OODEvaluation
from clip_ood.config.loading import load_config
from clip_ood.config.schema import BackboneConfig, Method
from clip_ood.config.schema import FineTune as Settings
from clip_ood.data.benchmark import load_benchmark
from clip_ood.datamodules.image_data import EpochBatches, ImageData, augmentation, plain
from clip_ood.experiments.extraction import load_features
from clip_ood.experiments.models import build
from clip_ood.features.rows import Rows
from clip_ood.features.stored_set import Features
from clip_ood.lightning_modules.fine_tune import FineTune
from clip_ood.lightning_modules.layer_decay import depths, parameter_groups

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1]
STILL = {"mixup": 0, "cutmix": 0, "augment": None, "random_erasing": 0, "min_crop": 1, "flip": 0, "label_smoothing": 0}
FITTED = STILL | {"epochs": 30, "warmup_epochs": 2, "batch_size": 16, "lr": 0.02, "layer_decay": 0.9}
MOVING = {"epochs": 4, "warmup_epochs": 1, "batch_size": 8, "lr": 0.02, "random_erasing": 0.5, "ema": 0.5}
PROBE = {"linear_probe": {"epochs": 20, "batch_size": 8, "lr": 0.05}}


def start(root, name, settings, *options, **keys):
    """The folder of a finished run of fine-tuning."""
    train.main(["--config", tiny_clip.config(root, name, {"finetune": settings}, **keys), *options])
    return root / "runs" / name


@pytest.fixture(scope="module")
def fitted(root):
    losses, step = [], FineTune.training_step

    def watched(module, batch, batch_idx):
        logits = module._logits(batch.images)
        losses.append((module.current_epoch, batch.indices, (logits.argmax(1) == batch.labels).float().mean().item()))
        return step(module, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FineTune, "training_step", watched)
        run = start(root, "fitted", FITTED)
    return run, losses


@pytest.fixture(scope="module")
def moving(root):
    """A run with every augmentation, its validation tables by epoch."""
    seen, end = [], OODEvaluation.on_validation_end

    def watched(self, trainer, module):
        end(self, trainer, module)
        average = next(c for c in trainer.callbacks if isinstance(c, MovingAverage))._average_model.module
        seen.append((trainer.current_epoch, self.results, copy.deepcopy(average.state_dict())))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OODEvaluation, "on_validation_end", watched)
        run = start(
            root, "moving", MOVING, evaluation={"resamples": 0, "figures": False, "report": False, "every_n_epochs": 2}
        )
    return run, seen


def naive_scores(root, run, state):
    """knn and msp of every scored image of a run from the weights in `state`, by (detector, set, path)."""
    config = load_config(str(run / "config.yaml"))
    backbone, benchmark = create_backbone(config.backbone), load_benchmark(config)
    tower = {k.removeprefix("backbone.model.visual."): v for k, v in state.items() if ".visual." in k}
    backbone.image_tower.load_state_dict(tower)
    features = {}
    for part in benchmark.evaluated:
        listed = benchmark.images[part.images]
        paths = [listed.names[row] for row in part.rows]
        images = [backbone.transform(Image.open(Path(listed.root, path)).convert("RGB")) for path in paths]
        features[part.name] = paths, backbone.encode_image(torch.stack(images))
    bank = normalize(features.pop("bank")[1], dim=1)
    scores = {}
    for name, (paths, g) in features.items():
        knn = (normalize(g, dim=1) @ bank.T).amax(1)
        msp = (g @ state["head.weight"].T + state["head.bias"]).softmax(1).amax(1)
        for detector, values in (("knn", knn), ("msp", msp)):
            scores |= {(detector, name, path): value for path, value in zip(paths, values.tolist(), strict=True)}
    return scores


def written_scores(run):
    table = pq.read_table(run / "scores.parquet").to_pylist()
    return {(name, row["set"], row["path"]): row[name] for row in table for name in ("knn", "msp")}


def assert_same_state(one, two, **tolerance):
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


# Training, averaging, going on


def test_it_overfits_32_images(fitted):
    run, seen = fitted
    epochs = range(FITTED["epochs"])
    assert all(len(torch.cat([rows for e, rows, _ in seen if e == epoch]).unique()) == 32 for epoch in epochs)
    assert [hits for epoch, _, hits in seen if epoch == epochs[-1]] == [1, 1]
    assert tiny_clip.results(run)["bank"] == {"images": 32, "per_class": None}


@pytest.mark.parametrize("run", ["fitted", "moving"])
def test_averaged_weights_are_evaluated_and_kept(root, run, request):
    run, _ = request.getfixturevalue(run)
    checkpoint = tiny_clip.checkpoint(run)
    found = written_scores(run)
    averaged, raw = (naive_scores(root, run, checkpoint[key]) for key in ("state_dict", "current_model_state"))
    assert len(found) == 2 * (14 + 9 + 7 + 1)
    assert found == pytest.approx(averaged, abs=1e-5)
    assert max(abs(found[key] - raw[key]) for key in found) > 1e-3


def test_without_averaging_raw_weights_are_evaluated_and_kept(root):
    run = start(root, "raw", MOVING | {"ema": None, "epochs": 2})
    checkpoint = tiny_clip.checkpoint(run)
    assert "current_model_state" not in checkpoint
    assert written_scores(run) == pytest.approx(naive_scores(root, run, checkpoint["state_dict"]), abs=1e-5)


def test_the_kept_weights_evaluated_again_give_the_same_table(root, moving):
    run, _ = moving
    evaluation.main(["--run", str(run)])
    assert tiny_clip.results(root / "runs" / "moving-eval")["rows"] == tiny_clip.results(run)["rows"]


def test_evaluation_while_training_sees_the_averaged_weights_and_every_image_once(root, moving):
    run, seen = moving
    assert [epoch for epoch, *_ in seen] == [1, 3]
    for _, results, averaged in seen:
        naive = naive_scores(root, run, averaged)
        rows = {name: len(scored.indices) for name, scored in results.scored.items()}
        assert rows == {"id_test": 14, "near": 9, "far": 7, "lone": 1}
        for detector in ("knn", "msp"):
            found = torch.cat([scored.scores[detector] for scored in results.scored.values()]).tolist()
            assert found == pytest.approx([score for key, score in naive.items() if key[0] == detector], abs=1e-5)
    assert_same_state(seen[-1][2], tiny_clip.checkpoint(run)["state_dict"])


def test_the_average_forgets_after_its_share_of_the_run_and_each_step_draws_anew(root):
    history, rates, draws, decay = [], [], set(), Settings(**MOVING).averaging(4 * 4)

    def step(module, batch, batch_idx):
        history.append(module.head.weight.detach().clone())
        rates.append(module.optimizers().param_groups[-1]["lr"])
        loss = original(module, batch, batch_idx)
        draws.add((torch.initial_seed(), np.random.get_state()[1][0]))
        return loss

    original = FineTune.training_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FineTune, "training_step", step)
        run = start(root, "history", MOVING)
    assert len(history) == len(draws) == 16
    rise = 1e-6 + (0.02 - 1e-6) * np.arange(4) / 4
    fall = 1e-6 + (0.02 - 1e-6) * (1 + np.cos(np.pi * np.arange(12) / 12)) / 2
    assert rates == pytest.approx([rate * 8 / 256 for rate in (*rise, *fall)])  # for a batch of 256
    checkpoint = tiny_clip.checkpoint(run)
    after = [*history[1:], checkpoint["current_model_state"]["head.weight"]]  # weights after each step
    average = after[0]
    for weights in after[1:]:
        average = decay * average + (1 - decay) * weights
    torch.testing.assert_close(checkpoint["state_dict"]["head.weight"], average)


@pytest.mark.parametrize(
    "settings, steps, decay",
    [
        ({}, 1000, 1 - 1 / 100),
        ({"ema": 0.5}, 16, 1 - 1 / 8),
        ({"ema": 0.1}, 5, 0.0),
        ({"ema": None}, 1000, None),
        ({"ema": 0}, 1000, None),
        ({"ema_decay": 0.9}, 10, 0.9),
        ({"ema_decay": 0.999, "ema_longer_than_run": True}, 10, 0.999),
    ],
)
def test_the_decay_follows_the_length_of_the_run(settings, steps, decay):
    assert Settings(**settings).averaging(steps) == (decay if decay is None else pytest.approx(decay))


def test_whole_numbers_are_copied_and_equal_weights_stay_equal():
    update, indices = moving_average(0.9), torch.arange(50)
    averaged = [indices.clone()]
    update(averaged, [indices], torch.tensor(1))
    assert torch.equal(averaged[0], indices)
    frozen = torch.randn(100)
    averaged = [frozen.clone()]
    update(averaged, [frozen], torch.tensor(1))
    assert torch.equal(averaged[0], frozen)


class Killed(Exception):
    """The process is gone."""


def killed_at(epoch, batch):
    original = FineTune.training_step

    def step(module, images, batch_idx):
        if (module.current_epoch, batch_idx) == (epoch, batch):
            raise Killed
        return original(module, images, batch_idx)

    return step


@pytest.mark.parametrize("epoch, batch", [(0, 2), (1, 0), (2, 3)])
def test_a_killed_run_goes_on_to_the_same_weights(root, moving, epoch, batch):
    name = f"killed_{epoch}"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(FineTune, "training_step", killed_at(epoch, batch))
        start(root, name, MOVING)
    kept = root / "runs" / name / "checkpoints" / "last.ckpt"
    assert kept.is_file() == (epoch > 0)
    assert epoch == 0 or tiny_clip.checkpoint(root / "runs" / name)["global_step"] == 4 * epoch
    torch.manual_seed(99), np.random.seed(99), random.seed(99)
    run = start(root, name, MOVING, "--resume")
    whole, resumed = tiny_clip.checkpoint(moving[0]), tiny_clip.checkpoint(run)
    assert resumed["global_step"] == whole["global_step"] == 16
    assert resumed["lr_schedulers"] == whole["lr_schedulers"]
    for key in ("state_dict", "current_model_state"):
        assert_same_state(whole[key], resumed[key], rtol=0, atol=1e-5)
    assert written_scores(run) == pytest.approx(written_scores(moving[0]), abs=1e-4)


def test_a_run_killed_in_its_last_evaluation_still_evaluates_averaged_weights(root, moving, monkeypatch):
    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(clip_ood.experiments.run, "write_results", killed)
        start(root, "almost", MOVING)
    run = start(root, "almost", MOVING, "--resume")
    assert tiny_clip.results(run)["rows"] == tiny_clip.results(moving[0])["rows"]


# Images and augmentation


def image_data(root, settings, workers=0, epoch=0, **keys):
    config = load_config(tiny_clip.config(root, "data", {"finetune": settings}, **keys))
    backbone, benchmark = create_backbone(config.backbone), load_benchmark(config)
    stored = {
        name: Features(Rows((torch.zeros(len(images), 32),)), None, torch.ones(len(images), dtype=torch.bool))
        for name, images in benchmark.images.items()
    }
    reading = config.data.model_copy(update={"num_workers": workers})
    data = ImageData(benchmark, stored, backbone, reading, config.method.settings, config.seed)
    data.trainer = SimpleNamespace(
        world_size=1,
        global_rank=0,
        accumulate_grad_batches=1,
        current_epoch=epoch,
        num_nodes=1,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    return data


def augmented(root, batch_size=8, **keys):
    """Every training image by its row, as augmented."""
    loader = image_data(root, MOVING | {"batch_size": batch_size}, **keys).train_dataloader()
    return {int(row): image for batch in loader for row, image in zip(batch.indices, batch.images, strict=True)}


def same(one, two):
    return [torch.equal(one[row], two[row]) for row in sorted(one.keys() & two.keys())]


def test_augmentation_depends_on_seed_epoch_and_image_alone(root):
    first = augmented(root)
    assert len(first) == 32
    assert all(same(first, augmented(root, workers=2))) and all(same(first, augmented(root, batch_size=16)))
    for other in (augmented(root, epoch=1), augmented(root, seed=1)):
        changed = same(first, other)
        assert len(changed) >= 12 and sum(changed) <= 1


def test_an_image_leaves_the_global_random_state_alone(root):
    dataset = image_data(root, MOVING).train_dataloader().dataset
    states = []
    for _ in range(2):
        states.append((random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()))
        dataset[3, 0]
    assert states[0] == states[1]


@pytest.mark.parametrize("normalise", ["model", "imagenet"])
@pytest.mark.parametrize("library, model", [("open_clip", None), ("timm", "test_vit")])
def test_pixels_have_the_size_mean_and_std_that_are_asked_for(root, library, model, normalise):
    spec = BackboneConfig(library=library, model=model or f"local-dir:{root}/clip")
    backbone = create_backbone(spec)
    prepared, settings = backbone.preprocessing, Settings(**STILL, normalise=normalise)
    mean, std = (prepared.mean, prepared.std) if normalise == "model" else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    grey = Image.new("RGB", (70, 50), (51, 102, 204))
    for transform in (augmentation(settings, prepared), plain(settings, backbone)):
        pixels = transform(grey)
        assert pixels.shape == (3, *prepared.size)
        expected = (torch.tensor([0.2, 0.4, 0.8]) - torch.tensor(mean)) / torch.tensor(std)
        torch.testing.assert_close(pixels.mean(dim=(1, 2)), expected, rtol=0, atol=1e-4)
    photograph = Image.open(root / "data" / "id" / "cat" / "0.png")
    shown = (plain(settings, backbone)(photograph) * torch.tensor(std).view(3, 1, 1)) + torch.tensor(mean).view(3, 1, 1)
    own = backbone.transform(photograph) * torch.tensor(prepared.std).view(3, 1, 1)
    torch.testing.assert_close(shown, own + torch.tensor(prepared.mean).view(3, 1, 1))  # the same crop


def test_the_published_run_mixes_images_and_changes_none():
    settings = load_config("finetune_published_vitl.yaml").method.settings
    assert (settings.mixup, settings.cutmix, settings.label_smoothing) == (0.8, 1.0, 0.1)
    transform = augmentation(settings, Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3, "bicubic"))
    image = Image.effect_noise((32, 32), 60).convert("RGB")
    whole = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    expected = (whole - torch.tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_DEFAULT_STD).view(
        3, 1, 1
    )
    for _ in range(20):
        torch.testing.assert_close(transform(image), expected)


@pytest.mark.parametrize("count, size, parts, world", [(37, 8, 1, 1), (37, 8, 2, 2), (37, 12, 3, 2), (37, 8, 4, 1)])
def test_devices_and_accumulated_parts_together_see_the_same_global_batches(count, size, parts, world):
    def steps(parts, world, epoch=3):
        ranks = [list(EpochBatches(count, size, parts, 0, rank, world, lambda: epoch)) for rank in range(world)]
        assert {len(each) for each in ranks} == {len(EpochBatches(count, size, parts, 0, 0, world, lambda: 0))}
        assert {len(batch) for each in ranks for batch in each} == {size // parts // world}
        together = [sorted(chain(*batches)) for batches in zip(*ranks, strict=True)]
        whole = [sorted(chain(*together[i : i + parts])) for i in range(0, len(together), parts)]
        assert {told for step in whole for _, told in step} == {epoch}
        return [[position for position, _ in step] for step in whole]

    assert steps(parts, world) == steps(1, 1) and len(steps(1, 1)) == count // size
    assert steps(1, 1) != steps(1, 1, epoch=4)


def test_accumulated_batches_give_the_weights_of_whole_ones(root):
    settings = FITTED | {"epochs": 2, "warmup_epochs": 0, "batch_size": 12}  # 32 images: 2 steps an epoch
    trainer = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
    whole = start(root, "whole", settings)
    parts = start(root, "parts", settings, trainer=trainer | {"accumulate_grad_batches": 3})
    one, two = (tiny_clip.checkpoint(run) for run in (whole, parts))
    assert one["global_step"] == two["global_step"] == 4
    assert_same_state(one["state_dict"], two["state_dict"], rtol=1e-3, atol=1e-4)


def test_the_bank_is_a_draw_a_class_and_the_results_say_so(root):
    evaluation = {"resamples": 0, "figures": False, "report": False, "bank_per_class": 4}
    run = start(root, "drawn", MOVING | {"epochs": 1, "warmup_epochs": 0}, evaluation=evaluation)
    assert tiny_clip.results(run)["bank"] == {"images": 12, "per_class": 4}
    benchmark = load_benchmark(load_config(str(run / "config.yaml")))
    assert Counter(benchmark.labels(benchmark.parts["bank"])) == {0: 4, 1: 4, 2: 4}
    naive = naive_scores(root, run, tiny_clip.checkpoint(run)["state_dict"])
    assert written_scores(run) == pytest.approx(naive, abs=1e-5)


# The tower


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


# The head


@pytest.fixture(scope="module")
def probe(root):
    train.main(["--config", tiny_clip.config(root, "probe", PROBE)])
    return root / "runs" / "probe"


def first_step(root, name, **settings):
    """The module as it starts, and its outputs on the ID test images beside the stored ones."""
    config = load_config(tiny_clip.config(root, name, {"finetune": STILL | settings}))
    benchmark = load_benchmark(config)
    trainer = clip_ood.experiments.run.make_trainer(config, root, OODEvaluation(None, 0, 0), trains=False)
    features, text = load_features(config, benchmark, trainer, root)
    module, data = build(config, benchmark, features, text)
    frozen = config.model_copy(update={"method": Method(zero_shot={})})
    features, _ = load_features(frozen, benchmark, trainer, root)
    module.eval()
    table = data.tables["id_test"]
    images = [data.transform(benchmark.images["id"].read(int(row))) for row in table.rows]
    with torch.no_grad():
        logits = module._logits(torch.stack(images))
    module.requires_grad_(False)
    return module, logits, features["id"].features.take(table.rows), features["id"].embeddings.take(table.rows)


def test_a_head_from_text_predicts_as_zero_shot(root):
    module, logits, _, embeddings = first_step(root, "text", head="text")
    cosines = embeddings @ module.text_embeddings.T
    assert torch.equal(logits.argmax(1), cosines.argmax(1))
    torch.testing.assert_close(normalize(logits, dim=1), normalize(cosines, dim=1), rtol=1e-3, atol=1e-4)
    scale = (logits / (module.logit_scale * cosines)).median()
    assert 0.8 < scale < 1.25


def test_a_head_from_a_probe_gives_its_logits(root, probe):
    _, logits, features, _ = first_step(root, "from_probe", head=str(probe))
    state = tiny_clip.checkpoint(probe)["state_dict"]
    standard = (features - state["head.mean"]) / state["head.std"]
    expected = standard @ state["head.linear.weight"].T + state["head.linear.bias"]
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


def test_a_random_head_is_drawn_by_the_seed(root):
    one, two = (first_step(root, "random", head="random")[0].head.weight for _ in range(2))
    assert torch.equal(one, two) and one.std() == pytest.approx(0.02, rel=0.3)


@pytest.fixture(scope="module")
def other_classes(root, probe):
    (root / "two").mkdir()
    for name in tiny_clip.CLASSES[:2]:
        (root / "two" / name).symlink_to(root / "data" / "id" / name)
    return {"root": str(root / "data"), "id": str(root / "two"), "splits": {"val": 0.0, "test": 0.3}}


def test_heads_that_do_not_fit_say_what_to_change(root, probe, moving, other_classes):
    def refused(message, head=probe, **keys):
        with pytest.raises(ValueError, match=message):
            start(root, "refused", STILL | {"head": str(head), "batch_size": 8}, **keys)
        assert not (root / "runs" / "refused" / "config.yaml").exists()

    refused(r"was trained on 3 classes, and the images here have 2; they differ in fox", data=other_classes)
    refused("has another encoder .*train a probe", backbone={"library": "timm", "model": "test_vit"})
    refused("divided the images by seed 42 .*train it with the seed", seed=1)
    refused("is a finetune run; take a linear_probe or plp run", head=moving[0])
    refused("neither random, nor text, nor a finished run", head=root / "data")
    refused("timm's models have none: take random", head="text", backbone={"library": "timm", "model": "test_vit"})


def test_an_evaluation_needs_no_more_the_run_that_its_head_started_from(root, probe):
    (root / "runs" / "gone").mkdir()
    for part in ("config.yaml", "results.json", "checkpoints"):
        (root / "runs" / "gone" / part).symlink_to(probe / part)
    run = start(root, "lp_ft", FITTED | {"epochs": 1, "warmup_epochs": 0, "head": str(root / "runs" / "gone")})
    (root / "runs" / "gone").rename(root / "runs" / "away")
    evaluation.main(["--run", str(run)])
    assert tiny_clip.results(root / "runs" / "lp_ft-eval")["rows"] == tiny_clip.results(run)["rows"]


# Wrong settings


@pytest.mark.parametrize(
    "settings, keys, message",
    [
        ({"batch_size": 9}, {}, "batch_size = 9 gives .* 9 images; mixup and cutmix pair images: take 10"),
        ({"batch_size": 64}, {}, "batch_size = 64 is more than the 32 training images; lower it"),
        ({"batch_size": 8}, {"accumulate_grad_batches": 3}, "batch_size = 8 does not divide by .*; 6 or 9 does"),
        ({"ema_decay": 0.9999}, {}, r"averages over 10000 steps, and the run has 16: 100 % .* Leave ema_decay out"),
        ({"warmup_epochs": 4}, {}, "leaves nothing of 4 epochs"),
    ],
)
def test_wrong_steps_are_refused_before_an_image_is_read(root, settings, keys, message, monkeypatch):
    monkeypatch.setattr(clip_ood.experiments.run, "load_features", lambda *_: pytest.fail("images were read"))
    trainer = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False} | keys
    with pytest.raises(ValueError, match=message):
        start(root, "wrong", MOVING | settings, trainer=trainer)


def test_a_flat_folder_has_no_labels_to_train_on(root):
    data = {"root": f"{root}/data", "id": {"images": "near", "class_names": ["a", "b"]}}
    with pytest.raises(ValueError, match=r"method.finetune needs labels.*sort them into class folders"):
        start(root, "flat", MOVING, data=data)


@pytest.mark.parametrize(
    "library, model, tower", [("open_clip", "RN50", "ModifiedResNet"), ("timm", "mixer_s32_224", "")]
)
def test_a_tower_that_cannot_checkpoint_says_so(library, model, tower):
    with torch.device("meta"):
        backbone = create_backbone(BackboneConfig(library=library, model=model))
    if tower:
        with pytest.raises(ValueError, match=f"gradient_checkpointing: {tower} does not offer it; set it to false"):
            backbone.train_images(gradient_checkpointing=True)


# Two processes


def start_two(root, name, settings, **keys):
    """The same as `start`, in two processes."""
    path = tiny_clip.config(root, name, {"finetune": settings}, **keys)
    done = subprocess.run(
        [sys.executable, "train.py", "--config", path, "--trainer.devices=2", "--trainer.strategy=ddp"],
        cwd=PROJECT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return root / "runs" / name


def test_two_processes_train_the_same_weights_and_give_the_same_table(root):
    settings = FITTED | {"epochs": 3, "ema": 0.4}
    one = start(root, "one", settings)
    two = start_two(
        root, "two", settings, evaluation={"resamples": 0, "figures": False, "report": False, "every_n_epochs": 2}
    )
    first, second = tiny_clip.checkpoint(one), tiny_clip.checkpoint(two)
    assert first["global_step"] == second["global_step"] == 6
    for key in ("state_dict", "current_model_state"):
        assert_same_state(first[key], second[key], rtol=1e-3, atol=1e-4)
    assert written_scores(two) == pytest.approx(written_scores(one), abs=1e-3)


def test_two_processes_evaluate_with_the_batch_norm_statistics_that_are_kept(root):
    """Each process has met other images, so that its own statistics differ."""
    settings = STILL | {"epochs": 1, "warmup_epochs": 0, "batch_size": 8, "ema": 0.5}
    run = start_two(root, "batch_norm", settings, backbone={"library": "timm", "model": "test_resnet"})
    evaluation.main(["--run", str(run), "--trainer.devices=1", "--trainer.strategy=auto"])
    assert written_scores(run) == pytest.approx(written_scores(root / "runs" / "batch_norm-eval"), abs=1e-5)
