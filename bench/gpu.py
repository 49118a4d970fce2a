"""What a GPU, bf16, compiling and several devices change: times, and the largest change of an AUROC.

python -m bench.gpu [accelerator] [images a set] [model]. Needs no download: patterns as images, random weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
import yaml
from PIL import Image

from bench import precision
from clip_ood.detectors.neighbours import nearest

CLASSES = 4
BANK, QUERIES, WIDTH = 1_281_167, 8192, 768  # ImageNet's train set, ViT-L's embeddings


def grating(generator: np.random.Generator, angle: float, waves: float) -> np.ndarray:
    """A noisy pattern (224, 224, 3) of lines at an angle."""
    x, y = np.meshgrid(*[np.linspace(0, 2 * np.pi, 224)] * 2)
    lines = np.sin(waves * (x * np.cos(angle) + y * np.sin(angle)) + generator.uniform(0, 6))
    return (120 + 60 * lines[..., None] + generator.normal(0, 25, (224, 224, 3))).clip(0, 255).astype(np.uint8)


def make(root: Path, images: int) -> None:
    """Image folders id/<class>, where each class is an angle of lines, and ood, finer lines between two of these angles."""
    generator = np.random.default_rng(0)
    places = {f"id/{number}": (number * np.pi / CLASSES, 9) for number in range(CLASSES)} | {"ood": (0.4, 13)}
    for place, (angle, waves) in places.items():
        folder = root / place
        folder.mkdir(parents=True)
        for index in range(images):
            pixels = grating(generator, angle + generator.normal(0, 0.1), waves + generator.normal(0, 1))
            Image.fromarray(pixels).save(folder / f"{index:05d}.png")


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
    """A line for each variant, against the first."""
    first = None
    for name, arguments in variants.items():
        seconds, auroc = run(config, f"{title}_{name}".replace(", ", "_").replace(" ", "_"), *arguments)
        first = first or (seconds, auroc)
        change = max(abs(auroc[each] - first[1][each]) for each in auroc.keys() & first[1].keys())
        print(
            f"{title}, {name}  {seconds:.0f} s, {seconds / first[0]:.2f} of the first; furthest AUROC {change:.2f} points away",
            flush=True,
        )


def search(device: str) -> None:
    """The bank's 1-NN search against the bare product and its maximum, in float32."""
    bank, queries = (torch.randn(rows, WIDTH, device=device) for rows in (BANK, QUERIES))
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
    print(f"1-NN, {QUERIES} x {BANK} x {WIDTH}, time over bare products  {ours / bare:.2f} ({ours:.2f} s)", flush=True)


def main(accelerator: str = "gpu", images: str = "500", model: str = "ViT-B-32") -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make(root, int(images))
        content = {
            "data": {"root": folder, "id": "id", "ood": {"ood": "ood"}},
            "backbone": {"model": model},
            "method": {"linear_probe": {}},
            "evaluation": {"resamples": 0, "figures": False, "report": False, "save_detector": False},
            "runs_root": f"{folder}/runs",
            "features_root": f"{folder}/features",
            "trainer": {"accelerator": accelerator, "devices": 1, "enable_progress_bar": False},
        }
        config = root / "probe.yaml"
        config.write_text(yaml.safe_dump(content))
        bf16 = ["--backbone.precision=bf16"]
        table(config, "probe", {"fp32": [], "bf16": bf16, "bf16, all devices": [*bf16, "--trainer.devices=auto"]})
        method = {"finetune": {"epochs": 3, "warmup_epochs": 1, "batch_size": min(64, int(images))}}
        config.write_text(yaml.safe_dump(content | {"method": method}))
        mixed = ["--trainer.precision=bf16-mixed"]
        compiled = [*mixed, "--method.finetune.compile=true"]
        everywhere = [*mixed, "--trainer.devices=auto"]
        table(
            config,
            "fine-tuning",
            {"fp32": [], "bf16": mixed, "bf16, compiled": compiled, "bf16, all devices": everywhere},
        )
        config.write_text(yaml.safe_dump(content))
        attack = root / "attack.yaml"
        attack.write_text(
            yaml.safe_dump({"config": str(config), "ood": "ood", "pairs": int(images), "steps": 60, "lr": 0.01})
        )
        precision.main([str(attack)])
    if accelerator != "cpu":
        search("cuda" if accelerator in ("gpu", "auto") else accelerator)


if __name__ == "__main__":
    main(*sys.argv[1:])
