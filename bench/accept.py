"""Says whether several devices, kills and bf16 leave a run's figures as they are on a machine, and how fast it is: for whoever has GPUs.

python -m bench.accept [--out accept.json]. It aims at ten minutes, downloads nothing (patterns as images, random weights) and writes one
file to send back, which holds no path and no name of the machine or its user. The status is 1 if a line is not "ok". Without GPUs, two
processes on the CPU are compared with one. With --tiny it goes through its code.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bench import chosen
from bench.gpu import make
from bench.lines import Failed, Lines
from bench.machine import describe
from bench.training import Ended, Training, furthest
from clip_ood.command_line import guarded
from clip_ood.config.new_files import check_new
from clip_ood.errors import UserError
from clip_ood.files.writing import check_writable, write_text

# A GPU's convolutions round to TF32, of 10 bits, and other numbers of images in a batch may have other kernels.
FEATURES = 2.0**-10  # of the largest value
DEVICES = 0.1  # points of AUROC: bf16, of 7 bits, may move them by 0.5
RESUMED = 0.01  # points of any figure: the same steps, whose sums over devices may be in another order


class Sizes(NamedTuple):
    images: int  # of each of four classes, and of the OOD set
    library: str
    model: str
    reading: int  # images that a device encodes at a time
    batch: int  # images of a device in a step of fine-tuning
    epochs: int  # of the probe
    bf16: float  # points of AUROC that bf16 may move
    detectors: list[str] | None = None  # all
    timed: int = 3  # runs that only tell how fast they are, at most


GPU = Sizes(3000, "open_clip", "ViT-B-32", 64, 64, 100, 1.0)  # docs/speed.md tells of 0.5 on an H200 and 0.8 on a CPU
CPU = Sizes(
    100, "timm", "test_vit", 16, 16, 100, 3.0
)  # 2.0 for residual, which looks where these 64 features vary least
TINY = Sizes(24, "timm", "test_vit", 4, 4, 30, 5.0, ["knn", "msp", "rmd"], 1)  # of few images, each weighs much


@dataclass
class Acceptance:
    """The runs of a config on one device and on all, and the comparisons between them."""

    training: Training
    sizes: Sizes
    devices: int
    lines: Lines
    ended: dict[str, Ended] = field(default_factory=dict)

    def conduct(self) -> None:
        one, several = ["--trainer.devices=1"], [f"--trainer.devices={self.devices}", "--trainer.strategy=ddp"]
        groups = (("one", 1, one), ("all", self.devices, several))
        bf16, mixed = "--backbone.precision=bf16", "--trainer.precision=bf16-mixed"
        for name, _, group in groups:
            self.run(f"probe_fp32_{name}", *group)
        self.compare("features, fp32, all devices against one", "of the largest", FEATURES, self.features)
        self.compare(
            "AUROC, fp32, all devices against one",
            "points",
            DEVICES,
            lambda: self.between("fp32_one", "fp32_all", "auroc"),
        )
        self.lines.attempt("probe_fp32_all, killed and resumed", lambda: self.resume("probe_fp32_resumed", *several))
        self.compare(
            "all figures, resumed against not killed",
            "points",
            RESUMED,
            lambda: self.between("fp32_all", "fp32_resumed"),
        )
        self.run("probe_bf16_one", *one, bf16)
        self.compare("AUROC, one device, bf16 against fp32", "points", self.sizes.bf16, self.precision)
        timed = {f"finetune_bf16_{name}": [*group, mixed, self.tuning(count)] for name, count, group in groups}
        timed["probe_bf16_all"] = [*several, bf16]
        for name, arguments in islice(timed.items(), self.sizes.timed):
            self.run(name, *arguments)

    def tuning(self, devices: int) -> str:
        return f"--method={{finetune: {{epochs: 2, warmup_epochs: 1, batch_size: {self.sizes.batch * devices}}}}}"

    def run(self, name: str, *arguments: str) -> None:
        """Adds the line of a run: its images a second, and the AUROC of each detector in points."""

        def work() -> dict[str, Any]:
            self.ended[name] = ended = self.training.run(name, *arguments)
            auroc = {name: round(value, 4) for (ood, name, _), value in ended.figures("auroc").items() if ood == "ood"}
            pace = {f"images/s of {kind}": value for kind, value in ended.pace.items() if value is not None}
            return pace | {"auroc": auroc}

        self.lines.attempt(name, work)

    def resume(self, name: str, *arguments: str) -> dict[str, Any]:
        done = self.training.kill(name, self.sizes.epochs, *arguments)
        self.ended[name] = self.training.run(name, *arguments, "--resume")
        return {"note": f"killed after epoch {done} of {self.sizes.epochs}"}

    def compare(self, what: str, unit: str, limit: float, difference: Callable[[], dict[str, Any]]) -> None:
        """Adds the line of a difference, the `value` that is returned, which must not be above its limit; 0 means equal bits."""
        self.lines.attempt(what, lambda: {"limit": limit, "unit": unit} | difference())

    def features(self) -> dict[str, Any]:
        one, several = (self.finished(f"probe_fp32_{name}").features() for name in ("one", "all"))
        if not (np.isfinite(one).all() and np.isfinite(several).all()):
            raise Failed("some features are no numbers")
        return {"value": float(np.abs(several - one).max() / np.abs(one).max())}

    def between(self, first: str, second: str, *keys: str) -> dict[str, Any]:
        return {"value": furthest(*(self.finished(f"probe_{name}").figures(*keys) for name in (first, second)))}

    def precision(self) -> dict[str, Any]:
        """Compares detectors that run in both precisions, and names the others: rounded features may have another rank."""
        tables = [self.finished(f"probe_{name}_one").figures("auroc") for name in ("fp32", "bf16")]
        both = tables[0].keys() & tables[1].keys()
        alone = sorted({detector for _, detector, _ in tables[0].keys() ^ tables[1].keys()})
        value = furthest(*({key: table[key] for key in both} for table in tables))
        return {"value": value} | ({"note": f"in one of them alone: {', '.join(alone)}"} if alone else {})

    def finished(self, name: str) -> Ended:
        if name not in self.ended:
            raise Failed(f"{name} has not ended well")
        return self.ended[name]


def content(root: Path, sizes: Sizes, accelerator: str) -> dict[str, Any]:
    """Returns the config of all runs."""
    return {
        "data": {"root": str(root), "id": "id", "ood": {"ood": "ood"}, "batch_size": sizes.reading},
        "backbone": {"library": sizes.library, "model": sizes.model},
        "method": {"linear_probe": {"epochs": sizes.epochs}},
        "detectors": sizes.detectors,
        "evaluation": {"figures": False, "report": False, "save_detector": False},
        "timeout": 300,
        "trainer": {"accelerator": accelerator, "logger": False, "enable_progress_bar": False},
    }


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.accept", description=__doc__)
    parser.add_argument("--out", type=Path, help="the file to send back [accept.json; with --tiny none]")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    parser.add_argument("--accelerator", choices=("gpu", "cpu"), help="[gpu, if there is one]")
    parser.add_argument("--tiny", action="store_true", help="go through the code; what it prints measures nothing")
    given = parser.parse_args()
    if given.out is None and not given.tiny:
        given.out = Path("accept.json")
    if given.out is not None:
        check_new("--out", given.out, given.overwrite and given.out.is_file())
        check_writable(given.out.parent)
    if given.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError(
            "--accelerator: this torch finds no CUDA or ROCm GPU here; leave it out for two processes on the CPU"
        )
    return given


def main() -> None:
    """Exits with status 1 where a line is not "ok", once all are there."""
    given = options()
    accelerator = given.accelerator or ("gpu" if torch.cuda.is_available() and not given.tiny else "cpu")
    devices = torch.cuda.device_count() if accelerator == "gpu" else 2
    sizes = chosen(GPU if accelerator == "gpu" else CPU, TINY)
    about = {"accelerator": accelerator, "devices": devices, **describe(), "sizes": sizes._asdict()}
    print("\n".join(f"{key}: {value}" for key, value in about.items()), flush=True)
    if devices == 1:
        print("There is one GPU here: a process group of one stands for all devices", flush=True)
    lines = Lines()
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), sizes.images)
        Acceptance(Training(Path(folder), content(Path(folder), sizes, accelerator)), sizes, devices, lines).conduct()
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(given.out, json.dumps({"machine": about, "lines": lines.kept}, indent=1) + "\n")
        print(f"{given.out} is the file to send back: it holds what is printed above, and each detector's AUROC")
    if lines.failed:
        sys.exit(f"{lines.failed} of {len(lines.kept)} lines are not ok")


if __name__ == "__main__":
    guarded(main)
