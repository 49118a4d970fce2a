"""LoCoOp's regularisation against a loop and against a fit against plain torch."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import tiny_clip
import torch
from lightning.pytorch import Trainer
from torch.nn.functional import cross_entropy, normalize

from clip_ood.backbones.create import create_backbone
from clip_ood.config.method_schema import LoCoOp as Settings
from clip_ood.config.schema import BackboneConfig
from clip_ood.errors import UserError
from clip_ood.features.rows import Rows
from clip_ood.lightning_modules.batches import DeviceBatches
from clip_ood.lightning_modules.locoop import LoCoOp, local_regularisation
from clip_ood.texts.learnt_prompts import LearntPrompts

NAMES = ("cat", "dog", "fox")
IMAGES, PATCHES, CLASSES, WIDTH = 5, 7, 6, 8


def given():
    generator = torch.Generator().manual_seed(0)
    local, text = (
        normalize(torch.randn(*shape, WIDTH, generator=generator, dtype=torch.float64), dim=-1)
        for shape in ((IMAGES, PATCHES), (CLASSES,))
    )
    return local, text, torch.tensor([0, 5, 2, 2, 4])


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_regularisation_is_that_of_a_loop(rank):
    local, text, labels = given()
    total, count = 0.0, 0
    for image, label in zip(local, labels.tolist(), strict=True):
        for patch in image:
            weights = [math.exp(10 * float(patch @ each)) for each in text]
            shares = [weight / sum(weights) for weight in weights]
            if label in sorted(range(CLASSES), key=shares.__getitem__, reverse=True)[:rank]:
                continue
            total, count = total + sum(share * math.log(share + 1e-5) for share in shares), count + 1
    assert 0 < count < IMAGES * PATCHES
    found = local_regularisation(local, text, labels, 10.0, rank)
    assert found.item() == pytest.approx(total / count, rel=1e-12)


def test_without_such_parts_it_is_0_with_a_gradient_of_0():
    local, text, labels = given()
    text.requires_grad_()
    found = local_regularisation(local, text, labels, 10.0, CLASSES)
    found.backward()
    assert found.item() == 0 and not text.grad.any()


def test_a_step_along_its_gradient_makes_such_parts_less_certain():
    local, text, labels = given()
    text.requires_grad_()
    before = local_regularisation(local, text, labels, 10.0, 1)
    before.backward()
    after = local_regularisation(local, text - 1e-3 * text.grad, labels, 10.0, 1)
    assert after < before < 0


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    root = tiny_clip.make(tmp_path_factory.mktemp("locoop"))
    return create_backbone(BackboneConfig(model=f"local-dir:{root}/clip")).text_side()


def made(clip, **settings):
    """A module and the data of 12 images of 7 patches."""
    texts = clip.encode_text(list(NAMES))
    module = LoCoOp(
        Settings(epochs=3, batch_size=5, context=4, lr=0.5, **settings),
        0,
        class_names=NAMES,
        text_embeddings=texts,
        logit_scale=10.0,
    )
    generator = torch.Generator().manual_seed(1)
    h, patches = (normalize(torch.randn(12, *shape, 16, generator=generator), dim=-1) for shape in ((), (PATCHES,)))
    stored = SimpleNamespace(embeddings=Rows((h,)), tokens={"value": Rows((patches,))})
    table = SimpleNamespace(stored=stored, rows=torch.arange(12), labels=torch.arange(12) % 3)
    module.tables, module.text_tower = {"train": table}, lambda: clip
    return module, h, patches


def fitted(module):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(accelerator="cpu", devices=1, max_epochs=3, use_distributed_sampler=False, **quiet)
    trainer.fit(module, train_dataloaders=Loader(module))
    return module


class Loader:
    """Takes a module's batches once it has been set up."""

    def __init__(self, module):
        self.module = module

    def __len__(self):
        return 3

    def __iter__(self):
        return iter(self.module.training_batches())


def test_a_fit_is_that_of_plain_torch(clip):
    module, h, patches = made(clip, rank=1, weight=0.7)
    fitted(module)
    prompts = LearntPrompts(clip, [[name] for name in NAMES], 4)
    optimizer = torch.optim.SGD(prompts.parameters(), 0.5, momentum=0.9, weight_decay=5e-4)
    batches = DeviceBatches(torch.arange(12), torch.arange(12) % 3, 5, 0)
    for epoch, rate in enumerate((1e-5, 0.5, 0.375)):  # a cosine of three epochs, which begins in the second
        optimizer.param_groups[0]["lr"], batches.epoch = rate, epoch
        for rows, labels, _ in batches:
            optimizer.zero_grad()
            text = prompts(clip)
            loss = cross_entropy(10 * h[rows] @ text.T, labels)
            (loss + 0.7 * local_regularisation(patches[rows], text, labels, 10.0, 1)).backward()
            optimizer.step()
    torch.testing.assert_close(module.prompts.context, prompts.context, rtol=1e-4, atol=1e-6)
    without, *_ = made(clip, rank=1, weight=0.0)
    assert not torch.allclose(fitted(without).prompts.context, prompts.context, atol=1e-4)


def test_a_rank_of_all_classes_is_refused(clip):
    with pytest.raises(UserError, match=r"method\.locoop\.rank = 3: .* learnt for 3 classes: take fewer"):
        fitted(made(clip, rank=3)[0])
