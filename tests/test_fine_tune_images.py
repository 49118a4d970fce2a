"""Images that fine-tuning trains on: how they are prepared and augmented, and which batches they come in."""

from __future__ import annotations

import random
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_clip
import torch
from fine_tuning import FITTED, MOVING, STILL, assert_same_state, start
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from clip_ood.backbones.backbone import Preprocessing
from clip_ood.backbones.create import create_backbone
from clip_ood.config.loading import load_config
from clip_ood.config.schema import BackboneConfig
from clip_ood.config.schema import FineTune as Settings
from clip_ood.datamodules.image_data import EpochBatches, ImageData, augmentation, plain
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.features.rows import Rows
from clip_ood.features.stored_set import Features

pytestmark = pytest.mark.slow


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
