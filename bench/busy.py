"""Small computations on cores that other programs use, against the same on quiet ones: python -m bench.busy"""

from __future__ import annotations

import logging
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from bench import chosen
from bench.trainer import quiet_trainer
from clip_ood.config.schema import LinearProbe as Settings
from clip_ood.detectors.gaussian import eigh
from clip_ood.lightning_modules.batches import DeviceBatches
from clip_ood.lightning_modules.linear_probe import LinearProbe
from clip_ood.metrics.ood import ood_metrics


class Sizes(NamedTuple):
    id: int = 50_000
    ood: int = 10_000
    width: int = 768
    images: int = 2_560  # that a probe is trained on, for an epoch
    classes: int = 20
    repeats: int = 5


TINY = Sizes(id=500, ood=100, width=24, images=64, classes=3, repeats=1)


class Probe(LinearProbe):
    """Learns from features that lie in memory."""

    def learn(self, features: Tensor, labels: Tensor) -> None:
        self._batches = DeviceBatches(features, labels, self.settings.batch_size, 0)
        quiet_trainer(max_epochs=1).fit(self, self.training_batches())

    def setup(self, stage: str) -> None:
        """What it learns from is there already."""


def spin() -> None:
    while True:
        pass


@contextmanager
def others(count: int) -> Iterator[None]:
    """Has as many other processes compute without end."""
    processes = [multiprocessing.get_context("spawn").Process(target=spin, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()


def seconds(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return median(times[1:])


def main(sizes: Sizes) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    generator = torch.Generator().manual_seed(0)
    id_scores, ood_scores = torch.randn(sizes.id, generator=generator) + 1, torch.randn(sizes.ood, generator=generator)
    rows = torch.randn(sizes.width + 10, sizes.width, generator=generator, dtype=torch.float64)
    features = torch.randn(sizes.images, sizes.width, generator=generator)
    labels = torch.randint(sizes.classes, (sizes.images,), generator=generator)
    names = [str(number) for number in range(sizes.classes)]
    works = {
        f"metrics with intervals, {sizes.id} + {sizes.ood} scores": lambda: ood_metrics(id_scores, ood_scores, 0.0),
        f"eigendecomposition, {sizes.width} x {sizes.width}": lambda: eigh(rows.T @ rows),
        f"a probe's epoch, {sizes.images} x {sizes.width}, batches of 256": lambda: Probe(
            Settings(), sizes.width, 0, class_names=names
        ).learn(features, labels),
    }
    quiet = {what: seconds(work, sizes.repeats) for what, work in works.items()}
    with others(os.cpu_count() or 1):
        busy = {what: seconds(work, sizes.repeats) for what, work in works.items()}
    for what in works:
        print(
            f"{what}, beside as many other processes as there are cores, time over that on quiet cores  "
            f"{busy[what] / quiet[what]:.1f} ({1000 * busy[what]:.0f} ms / {1000 * quiet[what]:.0f} ms)  <= 4"
        )


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
