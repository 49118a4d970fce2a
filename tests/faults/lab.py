"""What faults are tried on: commands of seconds, with a tiny encoder and images that all trials share."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import tiny_clip
import yaml

FOLDER = "FAULTS_LAB"  # where the shared files are, for the processes of one search
SPLITS = {"val": 0.45, "test": 0.2}  # val images enough for a threshold
PROBE = {"linear_probe": {"epochs": 2, "batch_size": 16}}
SWEEP = {"linear_probe": {"epochs": 2, "batch_size": 16, "sweep": {"lr": [0.001, 0.01]}}}
FINETUNE = {"finetune": {"epochs": 2, "warmup_epochs": 0, "batch_size": 8}}


@cache
def shared() -> Path:
    """The folder of images, encoder and one finished run (runs/finished), made once; nothing of it is changed."""
    if FOLDER in os.environ:
        return Path(os.environ[FOLDER])
    root = Path(tempfile.mkdtemp(prefix="faults-lab-"))
    maker = os.getpid()
    atexit.register(lambda: shutil.rmtree(root, ignore_errors=True) if os.getpid() == maker else None)
    tiny_clip.make(root)
    os.environ[FOLDER] = str(root)
    from faults import process

    ended = process.run(train(root, "finished", PROBE), root / "log", **{FOLDER: str(root)})
    assert ended.status == 0, ended.said
    return root


def config(folder: Path, name: str, method: dict[str, Any], **keys: Any) -> str:
    """A config whose run, features and files lie in `folder`."""
    root = shared()
    data = {
        "root": f"{root}/data",
        "id": "id",
        "ood": {"near": "near", "far": "far"},
        "splits": SPLITS,
        "batch_size": 8,
    }
    content = {"data": data, "backbone": {"model": f"local-dir:{root}/clip"}} | keys
    return tiny_clip.config(folder, name, method, **content)


def train(folder: Path, name: str, method: dict[str, Any], *options: str) -> list[str]:
    return ["train.py", "--config", config(folder, name, method), *options]


def _eval(folder: Path) -> list[str]:
    return ["eval.py", "--config", config(folder, "eval", {"zero_shot": {}}, detectors=["knn", "mcm"])]


def _detect(folder: Path) -> list[str]:
    root = shared()
    images = [f"{root}/data/{name}" for name in ("near", "far")]
    return ["detect.py", "--run", f"{root}/runs/finished", *images, "--out", f"{folder}/predictions.csv"]


def _attack(folder: Path) -> list[str]:
    keys = {"ood": "near", "pairs": 4, "steps": 3, "lr": 0.02, "smoothness": 10.0, "batch_size": 2}
    keys |= {"config": config(folder, "attacked", {"zero_shot": {}}, detectors=["knn", "mcm"])}
    return ["attack.py", "--config", _written(folder / "attack.yaml", keys | {"runs_root": f"{folder}/runs"})]


def _study(folder: Path) -> list[str]:
    keys = {"config": config(folder, "base", PROBE), "studies_root": f"{folder}/studies", "shows": "table"}
    lines = {"MCM": {"detector": "mcm", "changes": {"method": {"zero_shot": {}}}}, "probe": {"detector": "msp"}}
    return [
        "study.py",
        "--config",
        _written(folder / "study.yaml", keys | {"axes": {"seed": {"seed": [1]}}, "lines": lines}),
    ]


def _written(path: Path, keys: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(keys, sort_keys=False))
    return str(path)


COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "train": lambda folder: train(folder, "train", PROBE),
    "sweep": lambda folder: train(folder, "sweep", SWEEP),
    "fine-tune": lambda folder: train(folder, "fine-tune", FINETUNE),
    "seeds": lambda folder: train(folder, "seeds", PROBE, "--seeds", "1", "2"),
    "eval": _eval,
    "detect": _detect,
    "attack": _attack,
    "study": _study,
}
"""What is done -> its command line; all that it writes goes into the folder that is given."""
