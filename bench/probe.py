"""Steps per second of probe training against a bare PyTorch loop over one tensor: python -m bench.probe"""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
from lightning.pytorch import Callback
from torch.nn.functional import cross_entropy

from bench import chosen, spread
from bench.trainer import quiet_trainer
from clip_ood.config.schema import LinearProbe as Settings
from clip_ood.data.benchmark import Benchmark, Part
from clip_ood.data.image_list import ImageList
from clip_ood.data.readers.files import Files
from clip_ood.datamodules.feature_data import FeatureData
from clip_ood.experiments.models import joined
from clip_ood.features.rows import Rows
from clip_ood.features.stored_set import Features
from clip_ood.lightning_modules.linear_probe import LinearProbe


class Sizes(NamedTuple):
    images: int = 200_000
    width: int = 1024
    classes: int = 1000
    batch: int = 8192
    pairs: int = 3


TINY = Sizes(images=200, width=16, classes=5, batch=64, pairs=1)


class Clock(Callback):
    """Seconds from the first step to the last."""

    def on_train_epoch_start(self, trainer, module) -> None:
        self.start = perf_counter()

    def on_train_end(self, trainer, module) -> None:
        self.seconds = perf_counter() - self.start


def ours(features: torch.Tensor, labels: torch.Tensor, sizes: Sizes) -> float:
    count, width = features.shape
    names = tuple(str(i) for i in range(count))
    images = {"id": ImageList.of("id", Path(), Files(Path(), names, labels.tolist()))}
    parts = {role: Part(role, role, "", "id", list(range(count))) for role in ("bank", "train")}
    benchmark = Benchmark(images, parts, tuple(map(str, range(sizes.classes))))
    stored = {"id": Features(Rows(tuple(features.split(1024))), None, torch.ones(count, dtype=torch.bool))}
    data = FeatureData(benchmark, stored, 4096)
    module = LinearProbe(Settings(epochs=1, batch_size=sizes.batch), width, 0, class_names=benchmark.class_names)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = quiet_trainer(clock, default_root_dir=folder, max_epochs=1, enable_progress_bar=True)
        trainer.fit(joined(module, data), datamodule=data)
    return clock.seconds


def bare(features: torch.Tensor, labels: torch.Tensor, sizes: Sizes) -> float:
    layer = torch.nn.Linear(sizes.width, sizes.classes)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3, weight_decay=1e-3)
    start = perf_counter()
    for rows in torch.randperm(sizes.images).split(sizes.batch):
        loss = cross_entropy(layer(features[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return perf_counter() - start


def main(sizes: Sizes) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    features, labels = torch.randn(sizes.images, sizes.width), torch.randint(sizes.classes, (sizes.images,))
    ratios = [bare(features, labels, sizes) / ours(features, labels, sizes) for _ in range(sizes.pairs)]
    print(
        f"probe, share of a bare loop's steps per second, {sizes.images} x {sizes.width}, {sizes.classes} classes, batch {sizes.batch}  "
        f"{spread(ratios, '.0%')}  >= 80%"
    )


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
