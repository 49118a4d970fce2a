"""All benchmarks, a line each: what was measured, what is wanted. Machines are noisy: read ratios, not seconds.

python -m bench, or python -m bench --tiny: every part at a tiny size, several at once, to see that each still runs. `bench.accept`, for
whoever has GPUs, is run by its own command, and here only at its tiny size.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from clip_ood.command_line import guarded

PARTS = (
    "accept",
    "waits",
    "busy",
    "extraction",
    "patches",
    "processes",
    "probe",
    "sweep",
    "prompts",
    "fine_tune",
    "attack",
    "detect",
    "server",
    "engines",
    "rmd",
    "products",
    "knn",
    "knn_memory",
    "leaks",
    "folder",
    "peers",
    "metrics",
    "intervals",
    "conventions",
    "statistics",
    "watching",
    "evaluation",
    "buckets",
    "imagenet",
    "label_free",
    "wrong_labels",
    "store",
    "gpu",
)


def conduct(modules: Sequence[str], tiny: bool) -> Iterator[str]:
    """Runs each module in a process of its own, whatever becomes of the others; yields those that failed.

    Tiny ones run as many at a time as there are cores, with a thread each, and what one says is printed when it ends.
    """

    def alone(module: str) -> bool:
        return subprocess.run([sys.executable, "-m", module]).returncode == 0

    def beside_others(module: str) -> bool:
        command, environment = [sys.executable, "-m", module, "--tiny"], os.environ | {"OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(ended.stdout, end="", flush=True)
        return ended.returncode == 0

    with ThreadPoolExecutor(os.cpu_count() if tiny else 1) as pool:
        went_well = pool.map(beside_others if tiny else alone, modules)
        yield from (module for module, well in zip(modules, went_well, strict=True) if not well)


def main(parts: Sequence[str], tiny: bool) -> None:
    """Exits with status 1 where a part has failed, once all have run."""
    print(
        f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, torch {torch.__version__}", flush=True
    )
    if not tiny:
        print("bench.accept is left out: python -m bench.accept compares several devices with one", flush=True)
        parts = [part for part in parts if part != "accept"]
    if not tiny and not torch.cuda.is_available():
        print("No GPU here: bench.gpu is left out", flush=True)
        parts = [part for part in parts if part != "gpu"]
    if failed := list(conduct([f"bench.{part}" for part in parts], tiny)):
        sys.exit(f"{len(failed)} of {len(parts)} parts failed, as told above: {', '.join(failed)}")


if __name__ == "__main__":
    guarded(lambda: main(PARTS, "--tiny" in sys.argv[1:]))
