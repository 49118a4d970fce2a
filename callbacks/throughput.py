"""Logs the images a second and the peak memory of training, under the same tags in every run."""

from __future__ import annotations

import sys
from time import perf_counter

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

try:
    import resource
except ImportError:  # Windows
    resource = None

GIB = 2**30


class Throughput(Callback):
    """Logs train/images_per_second and train/peak_memory_gib.

    The first counts all devices together and leaves validation out. The second is the memory of the first device's accelerator
    or, without one, of its process, if the system tells that.
    """

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start, self._images = perf_counter(), 0

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs, batch, batch_idx: int) -> None:
        self._images += len(batch[0]) * trainer.world_size
        self._seconds = perf_counter() - self._start

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        module.log("train/images_per_second", self._images / self._seconds, rank_zero_only=True)
        if (peak := peak_memory(module.device)) is not None:
            module.log("train/peak_memory_gib", peak / GIB, rank_zero_only=True)


def peak_memory(device: torch.device) -> int | None:
    """Returns bytes: of tensors on a CUDA device, otherwise of the process's resident set; None if the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
