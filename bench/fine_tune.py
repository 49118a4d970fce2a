"""Fine-tuning against a bare PyTorch loop with the same images, augmentation, model and batch: python -m bench.fine_tune"""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
from timm.data import Mixup
from torch import nn
from torch.nn.functional import cross_entropy

from bench import chosen, spread
from bench.pictures import draw
from bench.probe import Clock
from bench.trainer import quiet_trainer
from clip_ood.backbones.create import create_backbone
from clip_ood.callbacks.averaging import MovingAverage
from clip_ood.config.schema import BackboneConfig, Data, FineTune, ImageSet
from clip_ood.data.benchmark import Benchmark, Part
from clip_ood.data.image_list import ImageList
from clip_ood.data.listing import list_images
from clip_ood.datamodules.image_data import ImageData, augmentation
from clip_ood.features.rows import Rows
from clip_ood.features.stored_set import Features
from clip_ood.lightning_modules.fine_tune import FineTune as Module


class Sizes(NamedTuple):
    batch: int = 16
    images: int = 192
    pairs: int = 3


TINY = Sizes(batch=4, images=8, pairs=1)
CLASSES = 4
SPEC = BackboneConfig(library="timm", model="tf_efficientnet_lite0")  # random weights cost the same


def ours(images: ImageList, settings: FineTune) -> float:
    backbone = create_backbone(SPEC)
    names = tuple(map(str, range(CLASSES)))
    parts = {role: Part(role, role, "", "id", list(range(len(images)))) for role in ("bank", "train")}
    benchmark = Benchmark({"id": images}, parts, names)
    width = backbone.encode_image(torch.zeros(1, 3, 224, 224)).shape[1]
    stored = {"id": Features(Rows((torch.zeros(len(images), width),)), None, torch.ones(len(images), dtype=torch.bool))}
    data = ImageData(benchmark, stored, backbone, Data(id="unused"), settings, seed=0)
    module = Module(settings, backbone, width, 0, class_names=names)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        averaging = MovingAverage(0.9, torch.device("cpu"))
        trainer = quiet_trainer(averaging, clock, default_root_dir=folder, max_epochs=1, gradient_clip_val=1.0)
        trainer.fit(module, datamodule=data)
    return clock.seconds


def bare(images: ImageList, settings: FineTune) -> float:
    backbone = create_backbone(SPEC).train_images()
    transform = augmentation(settings, backbone.preprocessing)
    model = nn.Sequential(backbone.image_tower, nn.LazyLinear(CLASSES))
    model(torch.zeros(2, 3, 224, 224))
    mix = Mixup(settings.mixup, settings.cutmix, label_smoothing=0.1, num_classes=CLASSES)
    optimizer = torch.optim.AdamW(model.parameters())
    start = perf_counter()
    for rows in torch.randperm(len(images)).split(settings.batch_size):
        batch = torch.stack([transform(images.read(row)) for row in rows.tolist()])
        batch, targets = mix(batch, torch.tensor([images.labels[row] for row in rows.tolist()]))
        loss = cross_entropy(model(batch), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return perf_counter() - start


def main(sizes: Sizes) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    settings = FineTune(epochs=1, warmup_epochs=0, batch_size=sizes.batch)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(CLASSES):
            draw(Path(folder, str(number)), sizes.images // CLASSES)
        images = list_images("id", ImageSet(folder=Path(folder)), Path(), labelled=True, seed=0)
        ratios = [bare(images, settings) / ours(images, settings) for _ in range(sizes.pairs)]
    print(
        f"fine-tuning, share of a bare loop's images per second, EfficientNet-Lite0, batch {sizes.batch}, EMA in ours alone  "
        f"{spread(ratios, '.0%')}  >= 95%"
    )


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
