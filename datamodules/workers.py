"""Decides how many processes decode images, what passes their batches on, and how long a batch may take."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from rich.filesize import decimal

from clip_ood.process import stalls
from clip_ood.process.ranks import is_first
from clip_ood.terminal.shown import say

SHARED = Path("/dev/shm")  # Linux keeps the memory there through which batches come
AHEAD = 2  # batches that each process has ready

_told: set[str] = set()


def loading(trainer: Trainer, wanted: int | None, batch: int) -> dict[str, Any]:
    """Returns keywords of a DataLoader of images whose batches have this many bytes.

    `wanted` processes decode (None: at most 8 with a GPU, none without one), or as many as shared memory has room for, which is
    then reported.
    """
    on_gpu = trainer.strategy.root_device.type == "cuda"
    workers = default_workers(on_gpu) if wanted is None else wanted
    workers = _that_fit(workers, batch, max(1, trainer.world_size // trainer.num_nodes))
    ahead = {"prefetch_factor": AHEAD, "timeout": stalls.limit()} if workers else {}
    return {"num_workers": workers, "pin_memory": on_gpu} | ahead


def default_workers(on_gpu: bool) -> int:
    """Returns the number of decoding processes for each device: none beside an encoder on the CPU, which uses every core itself."""
    return min(8, os.cpu_count() or 1) if on_gpu else 0


def _that_fit(workers: int, batch: int, devices: int) -> int:
    """Returns at most `workers` for each of this many devices of this machine, as far as shared memory has room.

    If it is full, workers die or wait for ever.
    """
    if not workers or not batch or sys.platform != "linux":
        return workers
    free = shutil.disk_usage(SHARED).free if SHARED.is_dir() else 0
    fit = max(0, min(workers, (free // devices // batch - 1) // AHEAD))  # one batch is in use
    if fit < workers and is_first():
        needed = (AHEAD * workers + 1) * batch * devices
        text = (
            f"{SHARED} has {decimal(free)} free, and {workers} processes that decode images need {decimal(needed)} there for batches of "
            f"{decimal(batch)}: {fit or 'none'} instead, which is slower. In a container, start it with "
            f"--shm-size={-(-needed // 2**30)}g"
        )
        if text not in _told:
            _told.add(text)
            say(text, file=sys.stderr, flush=True)
    return fit
