"""Images a second and peak memory of training, under the same tags in every run."""

from __future__ import annotations

import resource
import sys
from time import perf_counter

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

GIB = 2**30


class Throughput(Callback):
    """Logs train/images_per_second of all devices together, validation left out, and train/peak_memory_gib of the
    first: of the accelerator where there is one, else of the process."""

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start, self._images = perf_counter(), 0

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs, batch, batch_idx: int) -> None:
        self._images += len(batch[0]) * trainer.world_size
        self._seconds = perf_counter() - self._start

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        module.log("train/images_per_second", self._images / self._seconds, rank_zero_only=True)
        module.log("train/peak_memory_gib", peak_memory(module.device) / GIB, rank_zero_only=True)


def peak_memory(device: torch.device) -> int:
    """Bytes: of tensors on a CUDA device, else of the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
