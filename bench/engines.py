"""New images judged by two workers of Ray Data against two processes that know nothing of each other: python -m bench.engines

Both have a core a worker. The rate is that of the last three quarters of the parts, so that the start of processes, encoder and Ray is
over; a line tells what the start took, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from bench import chosen, spread
from bench.detect import Sizes as Detector
from bench.detect import save
from bench.extraction import SPEC
from bench.pictures import draw
from clip_ood.backbones.create import create_backbone
from clip_ood.backbones.spec import ImageSpec
from clip_ood.experiments.detect import BATCHES

PROJECT = Path(__file__).parents[1]


class Sizes(NamedTuple):
    batch: int = 8
    parts: int = 8
    files: int = 64  # the list names each of them several times
    pairs: int = 3


TINY = Sizes(batch=1, parts=4, files=4, pairs=1)
ENGINES = {"shards": [["--shard", "0/2"], ["--shard", "1/2"]], "ray": [["--engine", "ray", "--actors", "2"]]}


def main(sizes: Sizes) -> None:
    with tempfile.TemporaryDirectory() as place:
        run, folder, listed = Path(place, "run"), Path(place, "images"), Path(place, "list.txt")
        draw(folder, sizes.files)
        images = sizes.parts * BATCHES * sizes.batch
        listed.write_text("".join(f"{folder}/{number % sizes.files:04d}.jpg\n" for number in range(images)))
        about = Detector(batch=sizes.batch, bank=1_000, val=100)
        save(run, create_backbone(SPEC), ImageSpec(SPEC.library, SPEC.model), 1280, about)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ENGINES}
        for number in range(sizes.pairs):
            for name, calls in ENGINES.items():
                command = [sys.executable, "detect.py", "--run", run, listed, "--out", f"{place}/{name}{number}.csv"]
                found[name].append(paced([[*command, *call] for call in calls], Path(f"{command[-1]}.parts"), sizes))
        ratios = [ours / plain for (ours, _), (plain, _) in zip(found["ray"], found["shards"], strict=True)]
        print(
            f"judging by 2 workers of Ray Data, images a second over two processes of --shard, {images:,} JPEGs, EfficientNet-Lite0  "
            f"{spread(ratios)}  >= 0.85"
        )
        told = (
            f"{name} {median(rate for rate, _ in each):.0f} a second, {median(start for _, start in each):.0f} s"
            for name, each in found.items()
        )
        print(f"… images a second, and seconds to the first part: {'; '.join(told)}")


def paced(commands: list[list], folder: Path, sizes: Sizes) -> tuple[float, float]:
    """Runs commands side by side; returns the images a second of the last three quarters of the parts, and the seconds to the first."""
    begun, written = time.time(), {}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    running = [
        subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for command in commands
    ]
    while any(each.poll() is None for each in running) and len(written) < sizes.parts:
        for path in folder.glob("part-*.jsonl"):
            written.setdefault(path.name, time.time())  # they are removed when they are joined
        time.sleep(0.02)
    for each in running:
        _, said = each.communicate()
        if each.returncode:
            sys.exit(said.decode())
    ends = sorted(written.values())
    quarter = len(ends) // 4
    images = (len(ends) - quarter) * BATCHES * sizes.batch
    return images / (ends[-1] - ends[quarter - 1]), ends[0] - begun


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
