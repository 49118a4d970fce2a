"""Measures what a GPU, bf16, compiling and several devices change: times, and the largest change of an AUROC.

python -m bench.gpu [accelerator] [images a set] [model]. Needs no download: patterns as images, random weights. With --tiny it
goes through its code on the CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
import yaml
from PIL import Image

from bench import chosen, precision
from clip_ood.detectors.neighbours import nearest

CLASSES = 4


class Sizes(NamedTuple):
    accelerator: str = "gpu"
    images: int = 500  # of each class, and of the OOD set
    model: str = "ViT-B-32"
    library: str = "open_clip"
    variants: int = 4  # of each training, at most
    steps: int = 60  # of the attack
    searched: tuple[int, int, int] = (
        1_281_167,
        8192,
        768,
    )  # ImageNet's train set, queries, width of ViT-L's embeddings


TINY = Sizes("cpu", 8, "test_vit", "timm", 1, 2, (500, 20, 16))


def grating(generator: np.random.Generator, angle: float, waves: float) -> np.ndarray:
    """Returns a noisy pattern (224, 224, 3) of lines at an angle."""
    x, y = np.meshgrid(*[np.linspace(0, 2 * np.pi, 224)] * 2)
    lines = np.sin(waves * (x * np.cos(angle) + y * np.sin(angle)) + generator.uniform(0, 6))
    return (120 + 60 * lines[..., None] + generator.normal(0, 25, (224, 224, 3))).clip(0, 255).astype(np.uint8)


def make(root: Path, images: int) -> None:
    """Makes image folders: id/<class>, where each class is an angle of lines, and ood, finer lines between two of these angles."""
    places = {f"id/{number}": (number * np.pi / CLASSES, 9) for number in range(CLASSES)} | {"ood": (0.4, 13)}

    def one(index: int, number: int, place: str) -> None:
        angle, waves = places[place]
        generator = np.random.default_rng((number, index))
        pixels = grating(generator, angle + generator.normal(0, 0.1), waves + generator.normal(0, 1))
        Image.fromarray(pixels).save(root / place / f"{index:05d}.png")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, place in enumerate(places):
            (root / place).mkdir(parents=True)
            list(pool.map(partial(one, number=number, place=place), range(images)))  # raises what they raised


def run(config: Path, name: str, *arguments: str) -> tuple[float, dict[str, float]]:
    """Seconds of `train.py` from images to table, and AUROC in percent by detector."""
    start = perf_counter()
    own = [f"--name={name}", f"--features_root={config.parent}/features/{name}"]
    command = [sys.executable, "train.py", "--config", str(config), *own, *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = perf_counter() - start
    rows = json.loads(Path(config.parent, "runs", name, "results.json").read_text(encoding="utf-8"))["rows"]
    return seconds, {row["detector"]: 100 * row["auroc"] for row in rows if row["ood"] == "ood"}


def table(config: Path, title: str, variants: dict[str, list[str]]) -> None:
    """Prints a line for each variant, compared with the first."""
    first = None
    for name, arguments in variants.items():
        seconds, auroc = run(config, f"{title}_{name}".replace(", ", "_").replace(" ", "_"), *arguments)
        first = first or (seconds, auroc)
        change = max(abs(auroc[each] - first[1][each]) for each in auroc.keys() & first[1].keys())
        print(
            f"{title}, {name}  {seconds:.0f} s, {seconds / first[0]:.2f} of the first; furthest AUROC {change:.2f} points away",
            flush=True,
        )


def search(device: str, rows: int, asked: int, width: int) -> None:
    """Compares the bank's 1-NN search with the bare product and its maximum, in float32."""
    bank, queries = (torch.randn(count, width, device=device) for count in (rows, asked))
    bank, queries = bank / bank.norm(dim=1, keepdim=True), queries / queries.norm(dim=1, keepdim=True)
    times = {"ours": [], "bare": []}
    for _ in range(4):  # the first warms up
        for name, function in (
            ("ours", lambda: nearest(queries, [bank], 1)[0]),
            ("bare", lambda: torch.stack([(queries @ part.T).amax(dim=1) for part in bank.split(65536)]).amax(dim=0)),
        ):
            start = perf_counter()
            function()[-1].sum().item()  # waits for the device
            times[name].append(perf_counter() - start)
    ours, bare = (min(each[1:]) for each in times.values())
    print(f"1-NN, {asked} x {rows} x {width}, time over bare products  {ours / bare:.2f} ({ours:.2f} s)", flush=True)


def main(sizes: Sizes) -> None:
    accelerator, images = sizes.accelerator, sizes.images
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make(root, images)
        content = {
            "data": {"root": folder, "id": "id", "ood": {"ood": "ood"}},
            "backbone": {"library": sizes.library, "model": sizes.model},
            "method": {"linear_probe": {}},
            "evaluation": {"figures": False, "report": False, "save_detector": False},
            "runs_root": f"{folder}/runs",
            "features_root": f"{folder}/features",
            "trainer": {"accelerator": accelerator, "devices": 1, "enable_progress_bar": False},
        }
        config = root / "probe.yaml"
        config.write_text(yaml.safe_dump(content))
        bf16 = ["--backbone.precision=bf16"]
        several = {"bf16, all devices": ["--trainer.devices=auto"]} if torch.cuda.device_count() > 1 else {}
        probes = {"fp32": [], "bf16": bf16} | {name: [*bf16, *more] for name, more in several.items()}
        table(config, "probe", dict(islice(probes.items(), sizes.variants)))
        method = {"finetune": {"epochs": 3, "warmup_epochs": 1, "batch_size": min(64, images)}}
        config.write_text(yaml.safe_dump(content | {"method": method}))
        mixed = ["--trainer.precision=bf16-mixed"]
        compiled = [*mixed, "--method.finetune.compile=true"]
        tuned = {"fp32": [], "bf16": mixed, "bf16, compiled": compiled}
        tuned |= {name: [*mixed, *more] for name, more in several.items()}
        table(config, "fine-tuning", dict(islice(tuned.items(), sizes.variants)))
        config.write_text(yaml.safe_dump(content))
        attack = root / "attack.yaml"
        attack.write_text(
            yaml.safe_dump({"config": str(config), "ood": "ood", "pairs": images, "steps": sizes.steps, "lr": 0.01})
        )
        precision.main([str(attack)])
    if accelerator != "cpu" or sizes == TINY:
        search("cuda" if accelerator in ("gpu", "auto") else accelerator, *sizes.searched)


if __name__ == "__main__":
    given = [argument for argument in sys.argv[1:] if argument != "--tiny"]
    sizes = chosen(Sizes(), TINY)
    accelerator, images, model = [*given, *sizes[len(given) : 3]]
    main(sizes._replace(accelerator=accelerator, images=int(images), model=model))
