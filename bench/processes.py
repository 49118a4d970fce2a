"""Extraction by two processes with one core each, against one process with one core: python -m bench.processes"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
from lightning.pytorch import Callback

from bench import chosen, spread
from bench.pictures import draw
from bench.trainer import quiet_trainer
from clip_ood.backbones.create import create_backbone
from clip_ood.callbacks.feature_writer import FeatureWriter
from clip_ood.config.schema import BackboneConfig, ImageSet
from clip_ood.data.listing import list_images
from clip_ood.datamodules.extraction import ExtractionData
from clip_ood.features.store import PART, FeatureStore
from clip_ood.lightning_modules.feature_extractor import FeatureExtractor


class Sizes(NamedTuple):
    images: int = 2 * PART
    pairs: int = 3


TINY = Sizes(images=8, pairs=1)
SPEC = BackboneConfig(library="timm", model="mobilenetv3_small_050")  # random weights cost the same


class Clock(Callback):
    """Seconds that the slowest process works on its batches."""

    def on_predict_epoch_start(self, trainer, module) -> None:
        trainer.strategy.barrier()
        self.start = perf_counter()

    def on_predict_epoch_end(self, trainer, module) -> None:
        trainer.strategy.barrier()
        self.seconds = perf_counter() - self.start


def extract(count: int, folder: Path, store: Path) -> None:
    """Prints the seconds; run with OMP_NUM_THREADS=1, in `count` processes."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    images = list_images("images", ImageSet(folder=folder), Path(), labelled=False, seed=0)
    half = len(images) // 2
    sets = {"first": images.subset(range(half)), "second": images.subset(range(half, len(images)))}  # a part a process
    features = FeatureStore(store, {"precision": "fp32"})
    stored = {name: features.image_set(name, each) for name, each in sets.items()}
    clock = Clock()
    writer, strategy = FeatureWriter(features, stored, []), "ddp" if count > 1 else "auto"
    trainer = quiet_trainer(writer, clock, devices=count, strategy=strategy)
    encoder = cache(lambda: create_backbone(SPEC))
    data = ExtractionData(sets, stored, [], lambda: encoder().transform, batch_size=32, workers=0)
    trainer.predict(FeatureExtractor(encoder), datamodule=data, return_predictions=False)
    if trainer.is_global_zero:
        print(f"seconds {clock.seconds}", flush=True)


def seconds(count: int, folder: Path) -> float:
    """Returns the seconds of one extraction in processes of its own."""
    with tempfile.TemporaryDirectory() as store:
        command = [sys.executable, "-m", "bench.processes", str(count), str(folder), store]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return next(float(line.split()[1]) for line in output.splitlines() if line.startswith("seconds "))


def main(sizes: Sizes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), sizes.images)
        ratios = [seconds(1, Path(folder)) / seconds(2, Path(folder)) for _ in range(sizes.pairs)]
    print(
        f"extraction, two processes against one, a core each, {sizes.images} JPEGs, MobileNetV3-Small-0.5  "
        f"{spread(ratios)}  >= 1.7"
    )


if __name__ == "__main__":
    if len(sys.argv) == 4:
        extract(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main(chosen(Sizes(), TINY))
