"""Seconds of a step of CoOp and of LoCoOp against a bare PyTorch loop: python -m bench.prompts"""

from __future__ import annotations

import logging
import tempfile
import warnings
from time import perf_counter
from types import SimpleNamespace
from typing import NamedTuple

import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from bench import chosen, spread
from bench.trainer import quiet_trainer
from clip_ood.backbones.backbone import Backbone
from clip_ood.backbones.create import create_backbone
from clip_ood.config.method_schema import CoOp as CoOpSettings
from clip_ood.config.method_schema import LoCoOp as LoCoOpSettings
from clip_ood.config.schema import BackboneConfig
from clip_ood.features.rows import Rows
from clip_ood.lightning_modules.coop import CoOp
from clip_ood.lightning_modules.locoop import LoCoOp

SCALE, WEIGHT, CONTEXT = 100.0, 0.25, 16


class Sizes(NamedTuple):
    classes: int = 20
    images: int = 160
    batch: int = 32
    patches: int = 196
    rank: int = 4
    pairs: int = 5


TINY = Sizes(classes=3, images=8, batch=4, patches=4, rank=1, pairs=1)


class Clock(Callback):
    """Seconds from the first step to the last."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        if batch_idx == 0:
            self.start = perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.seconds = perf_counter() - self.start


class Batches:
    """The batches of a module, which has them once it has been set up."""

    def __init__(self, module: CoOp, count: int) -> None:
        self.module, self.count = module, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self):
        return iter(self.module.training_batches())


def ours(kind: type[CoOp], settings: CoOpSettings, tower: Backbone, whole: Tensor, patches: Tensor, labels: Tensor):
    names = [f"class {number}" for number in range(int(labels.max()) + 1)]
    text = normalize(torch.randn(len(names), whole.shape[1]), dim=1)
    module = kind(settings, 0, class_names=names, text_embeddings=text, logit_scale=SCALE)
    stored = SimpleNamespace(embeddings=Rows((whole,)), tokens={"value": Rows((patches,))})
    module.tables = {"train": SimpleNamespace(stored=stored, rows=torch.arange(len(whole)), labels=labels)}
    module.text_tower, clock = lambda: tower, Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = quiet_trainer(clock, default_root_dir=folder, max_epochs=1)
        trainer.fit(module, train_dataloaders=Batches(module, -(-len(whole) // settings.batch_size)))
    return clock.seconds


def bare(local: bool, tower: Backbone, whole: Tensor, patches: Tensor, labels: Tensor, sizes: Sizes) -> float:
    model = tower.model
    prompt = " ".join(["X"] * CONTEXT)
    tokens = tower.tokenize([f"{prompt} class {number}." for number in range(sizes.classes)])
    tokens = tokens[:, : int(tokens.argmax(dim=1).max()) + 1]  # no token sees what comes after it
    with torch.no_grad():
        embedded = model.token_embedding(tokens)
    context = torch.nn.Parameter(0.02 * torch.randn(CONTEXT, embedded.shape[2]))
    optimizer = torch.optim.SGD([context], 0.002, momentum=0.9, weight_decay=5e-4)
    last = torch.arange(sizes.classes), tokens.argmax(dim=1)
    start = perf_counter()
    for rows in torch.randperm(len(whole)).split(sizes.batch):
        between = context.expand(sizes.classes, -1, -1)
        x = (
            torch.cat([embedded[:, :1], between, embedded[:, 1 + CONTEXT :]], dim=1)
            + model.positional_embedding[: tokens.shape[1]]
        )
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[: tokens.shape[1], : tokens.shape[1]]))
        text = normalize(x[last] @ model.text_projection, dim=1)
        loss = cross_entropy(SCALE * whole[rows] @ text.T, labels[rows])
        if local:
            logits = SCALE * patches[rows] @ text.T
            places = logits.topk(sizes.rank, dim=2).indices
            foreign = (places != labels[rows, None, None]).all(dim=2)
            shares = logits[foreign].softmax(dim=1)
            loss = loss + WEIGHT * (shares * (shares + 1e-5).log()).sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return perf_counter() - start


def main(sizes: Sizes) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*num_workers.*|.*val_dataloader.*")
    tower = create_backbone(BackboneConfig(model="ViT-B-16")).text_side()  # random weights cost the same
    torch.manual_seed(0)
    width = tower.model.text_projection.shape[1]
    whole = normalize(torch.randn(sizes.images, width), dim=1)
    patches = normalize(torch.randn(sizes.images, sizes.patches, width), dim=2)
    given = tower, whole, patches, torch.arange(sizes.images) % sizes.classes
    own = {"epochs": 1, "batch_size": sizes.batch, "context": CONTEXT}
    for kind, settings in (
        (CoOp, CoOpSettings(**own)),
        (LoCoOp, LoCoOpSettings(**own, rank=sizes.rank, weight=WEIGHT)),
    ):
        ratios = [bare(kind is LoCoOp, *given, sizes) / ours(kind, settings, *given) for _ in range(1 + sizes.pairs)][
            1:
        ]  # the first warms up
        print(
            f"{kind.__name__} training, steps per second over a bare loop, ViT-B-16, {sizes.classes} classes, batch {sizes.batch}  "
            f"{spread(ratios)}  >= 0.9"
        )


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
