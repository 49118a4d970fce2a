"""Feature extraction against a bare decode–transform–forward loop over the same files: python -m bench.extraction"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from PIL import Image

from bench import chosen
from callbacks.feature_writer import FeatureWriter
from clip_ood.backbones.backbone import Backbone
from clip_ood.backbones.create import create_backbone
from clip_ood.features.store import FeatureStore
from configs.schema import BackboneConfig, ImageSet
from datamodules.extraction import ExtractionData
from datamodules.image_list import ImageList, list_images
from lightning_modules.feature_extractor import FeatureExtractor


class Sizes(NamedTuple):
    batch: int = 32
    images: int = 256
    pairs: int = 5


TINY = Sizes(batch=4, images=8, pairs=1)
SPEC = BackboneConfig(library="timm", model="tf_efficientnet_lite0")  # random weights cost the same


def ours(images: ImageList, backbone: Backbone, batch: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder), {"precision": "fp32"})
        stored = {"images": store.image_set("images", images)}
        data = ExtractionData({"images": images}, stored, [], batch, num_workers=0)
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            callbacks=[FeatureWriter(store, stored, [])],
            enable_model_summary=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            use_distributed_sampler=False,
        )
        trainer.predict(FeatureExtractor(lambda: backbone), datamodule=data, return_predictions=False)


def bare(images: ImageList, backbone: Backbone, batch: int) -> None:
    with torch.inference_mode():
        features = []
        for start in range(0, len(images), batch):
            names = images.names[start : start + batch]
            pixels = [backbone.transform(Image.open(images.root / name).convert("RGB")) for name in names]
            features.append(backbone.encode_image(torch.stack(pixels)))
        torch.cat(features)


def seconds(function: Callable, *arguments) -> float:
    start = perf_counter()
    function(*arguments)
    return perf_counter() - start


def main(sizes: Sizes) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    backbone = create_backbone(SPEC)
    with tempfile.TemporaryDirectory() as folder:
        generator = torch.Generator().manual_seed(0)
        for index in range(sizes.images):
            pixels = torch.randint(256, (12, 12, 3), generator=generator, dtype=torch.uint8).numpy()
            Image.fromarray(pixels).resize((400, 300)).save(Path(folder, f"{index:03d}.jpg"))
        images = list_images("images", ImageSet(folder=Path(folder)), Path(), labelled=False, seed=0)
        given = images, backbone, sizes.batch
        ours(images.subset(range(sizes.batch)), backbone, sizes.batch)  # warm up
        ratios = [seconds(ours, *given) / seconds(bare, *given) for _ in range(sizes.pairs)]
    print(
        f"extraction, time over a bare loop, {sizes.images} JPEGs, EfficientNet-Lite0  "
        f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})  <= 1.15"
    )


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
