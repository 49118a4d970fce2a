"""A sweep of 64 heads in one pass, against the training steps of 64 separate probes: python -m bench.sweep"""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
from lightning.pytorch import Callback

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
from clip_ood.lightning_modules.probe_sweep import LinearProbeSweep


class Sizes(NamedTuple):
    images: int = 100_000
    width: int = 768
    classes: int = 100
    val: int = 100
    rounds: int = 3
    separate: int = 4  # heads trained alone in a round; the sum over all is scaled from them
    rounds_of: tuple[tuple[int, int], ...] = ((256, 40), (8192, 6))  # batch size and steps, the first of which warms up


TINY = Sizes(images=200, width=16, classes=5, val=20, rounds=1, separate=2, rounds_of=((64, 2), (128, 2)))
GRID = {"lr": [10 ** (-5 + i / 2) for i in range(8)], "weight_decay": [0, *(10 ** (-6 + i / 2) for i in range(7))]}
HEADS = len(GRID["lr"]) * len(GRID["weight_decay"])


class Clock(Callback):
    """Seconds a training step, from the end of the first to the end of the last, batches included."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if batch_idx == 0:
            self.start = perf_counter()
        else:
            self.step = (perf_counter() - self.start) / batch_idx


def step_seconds(
    data: FeatureData, sizes: Sizes, batch_size: int, steps: int, sweep: dict[str, list[float]] | None = None
) -> float:
    kind = LinearProbeSweep if sweep else LinearProbe
    settings = Settings(epochs=1, batch_size=batch_size, sweep=sweep)
    module = kind(settings, sizes.width, 0, class_names=tuple(map(str, range(sizes.classes))))
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = quiet_trainer(clock, default_root_dir=folder, max_epochs=1, limit_train_batches=steps)
        trainer.fit(joined(module, data), datamodule=data)
    return clock.step


def random_data(sizes: Sizes) -> FeatureData:
    generator = torch.Generator().manual_seed(0)
    count = sizes.images + sizes.val
    labels = torch.randint(sizes.classes, (count,), generator=generator)
    features = torch.randn(count, sizes.width, generator=generator)
    names = tuple(map(str, range(count)))
    images = {"id": ImageList.of("id", Path(), Files(Path(), names, labels.tolist()))}
    train, val = list(range(sizes.images)), list(range(sizes.images, count))
    parts = {role: Part(role, role, "", "id", rows) for role, rows in (("bank", val), ("train", train), ("val", val))}
    benchmark = Benchmark(images, parts, tuple(map(str, range(sizes.classes))))
    stored = {"id": Features(Rows(tuple(features.split(1024))), None, torch.ones(count, dtype=torch.bool))}
    return FeatureData(benchmark, stored, 4096)


def main(sizes: Sizes) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    data = random_data(sizes)
    for batch_size, steps in sizes.rounds_of:
        given, ratios, together = (data, sizes, batch_size, steps), [], []
        for _ in range(sizes.rounds):
            alone = [step_seconds(*given) for _ in range(sizes.separate // 2)]
            together.append(step_seconds(*given, GRID))
            alone += [step_seconds(*given) for _ in range(sizes.separate // 2)]
            ratios.append(together[-1] / (HEADS * sum(alone) / len(alone)))
        print(
            f"sweep, step of {HEADS} heads over {HEADS} steps of one (scaled from {sizes.separate}), "
            f"{sizes.images} x {sizes.width}, {sizes.classes} classes, batch {batch_size}  {spread(ratios)}, "
            f"{median(together):.2f} s a step  <= 0.75",
            flush=True,
        )


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
