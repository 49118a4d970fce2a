"""Wrong values for every key of a config, of an attack and of a study: in the file, and on the command line. Nothing is encoded."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, chdir
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import attack
import study
import train
from clip_ood.callbacks.ood_evaluation import OODEvaluation
from clip_ood.config.loading import contents, dump, validate
from clip_ood.config.schema import Config
from clip_ood.config.yaml_text import parse
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.experiments.run import make_trainer
from faults import lab
from faults.mutated import WRONG, answered, bytes_of, mutations, places
from faults.trial import Trial

SEED = 20
SAMPLE = 250  # one trial of so many is in the sample
CLASSES = ("cat", "dog", "fox")
PARTS = {  # an ID set that was published in parts, with keys that a folder alone has not
    "id": {
        "train": {"folder": "id", "per_class": 5, "count": 46, "classes": 3, "group": "ours", "source": "there"},
        "val": {"list": "val.txt", "images_root": "far"},
        "test": {"folder": "near", "labels": "labels.txt"},
        "class_names": ["a cat", "a dog", "a fox"],
    },
    "csid": {"shifted": {"folder": "more", "numbered": True}},
    "ood": {"noisy": {"corruption": "jpeg", "severity": 2, "group": "noise"}},
    "ood_val": "lone",
    "prompts": ["a {}", "the {}"],
    "negative_words": "words.txt",
    "max_negative_words": 3,
    "num_workers": 0,
}
PLP = {"plp": {"epochs": 2, "sweep": {"lr": [0.1, 0.2], "weight_decay": [0.1], "min_confidence": [0.5]}}}
DETECTORS = ["knn", {"name": "vim", "dim": [4, 8], "as": "v"}]
TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "precision": "32-true",
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 1,
    "enable_progress_bar": False,
}
LISTS = {
    "data/val.txt": "".join(f"{number}.png {number}\n" for number in range(3)),
    "data/labels.txt": "".join(f"{number}.png\t{CLASSES[number % 3]}\n" for number in range(9)),
    "data/names.txt": "a cat\na dog\na fox\n",
    "words.txt": "stone\nriver\n",
}
BUDGET = {"norm": "linf", "epsilon": 0.1}


@cache
def trials() -> list[Trial]:
    return [Trial(name, run, number % SAMPLE == 0) for number, (name, run) in enumerate(_all())]


@cache
def _all() -> list[tuple[str, Any]]:
    found = []
    for script, base in (("train", _probe()), ("train", _published()), ("attack", _attacked()), ("study", _studied())):
        found += [(f"{script}: {what}", partial(_of_file, script, content)) for what, content in mutations(base)]
        found += [
            (f"{script}: {key}={value}", partial(_of_line, script, base, f"--{key}={value}"))
            for key, value in _typed(base)
        ]
    numbers, whole = random.Random(SEED), json.dumps(_published()).encode()
    found += [(f"train: {what}", partial(_of_bytes, content)) for what, content in bytes_of(whole, numbers)]
    for name, text in LISTS.items():
        for what, content in bytes_of(text.encode(), numbers):
            found.append((f"{name}: {what}", partial(_of_list, name, content)))
        for what, value in WRONG.items():
            if isinstance(value, str):
                content = text.replace("fox", value).encode(errors="surrogateescape")
                found.append((f"{name}: a name is {what}", partial(_of_list, name, content)))
    return found


def _typed(base: Any) -> Iterator[tuple[str, str]]:
    """Wrong values as they are typed, for every key."""
    texts = {value if isinstance(value, str) else json.dumps(value) for value in WRONG.values()} | {"{", "[", "a: b"}
    for path in places(base):
        if all(isinstance(key, str) for key in path):
            yield from ((".".join(path), text) for text in sorted(texts) if "\0" not in text)  # no system passes it on


def _probe() -> dict[str, Any]:
    data = {"root": "data", "id": "id", "ood": {"near": "near", "far": {"folder": "far"}}, "splits": lab.SPLITS}
    return {
        "data": data,
        "backbone": {"model": "local-dir:clip", "label": "tiny"},
        "method": lab.SWEEP,
        "trainer": TRAINER,
    } | {
        "name": "run",
        "runs_root": "runs",
        "features_root": "features",
        "seed": 1,
        "seeds": [1, 2],
        "evaluation": {"bank_per_class": 5, "bank_without": None, "every_n_epochs": 1, "accept": 0.9},
    }


def _published() -> dict[str, Any]:
    encoder = {
        "library": "open_clip",
        "model": "ViT-B-32",
        "pretrained": "openai",
        "preprocess": None,
        "precision": "bf16",
    }
    encoder |= {"random_seed": 1, "text": {"model": "ViT-B-32", "pretrained": None}}
    return {"data": PARTS | {"root": "data"}, "backbone": encoder, "method": PLP, "detectors": DETECTORS}


def _attacked() -> dict[str, Any]:
    keys = {
        "config": "base.yaml",
        "changes": {"data.splits": {"val": 0.3}, "seed": 3},
        "ood": "near",
        "pairs": 4,
        "score": "knn",
    }
    keys |= {"runs_root": "runs", "images": "pictures", "defences": {"jpeg": 1}, "transfer": {"other": "other.yaml"}}
    return keys | {
        "name": "attack",
        "steps": 3,
        "lr": 0.1,
        "noise": 0.1,
        "sign": True,
        "budget": BUDGET,
        "curve": {"pairs": 2},
    }


def _studied() -> dict[str, Any]:
    axes = {
        "shots": {"method.*.per_class": [1, 2]},
        "encoder": {"small": {"backbone": {"model": "local-dir:clip"}}, "same": {}},
    }
    lines = {
        "PLP": {
            "detector": {"name": "knn", "k": 2},
            "changes": {"method": {"plp": {}}},
            "axes": ["shots"],
            "only": {"shots": ["1"]},
        },
        "MCM": {"detector": "mcm", "changes": {"method": {"zero_shot": {}}}, "axes": []},
    }
    return {"config": "base.yaml", "changes": {"seed": 2}, "shows": "table", "title": "T", "axes": axes, "lines": lines}


def _of_file(script: str, content: Any, folder: Path) -> None:
    _conducted(script, json.dumps(content).encode(), [], folder)  # JSON is YAML, with escapes for all characters


def _of_line(script: str, base: Any, argument: str, folder: Path) -> None:
    _conducted(script, json.dumps(base).encode(), [argument], folder)


def _of_bytes(content: bytes, folder: Path) -> None:
    _conducted("train", content, [], folder)


def _of_list(name: str, content: bytes, folder: Path) -> None:
    base = _published() | {"data": _published()["data"] | {"root": "data"}}
    base["data"]["id"] = base["data"]["id"] | {"class_names": "names.txt"}
    _conducted("train", json.dumps(base).encode(), [], folder, {name: content})


def _conducted(
    script: str, config: bytes, options: list[str], folder: Path, files: Mapping[str, bytes] = MappingProxyType({})
) -> None:
    """A script with a config up to where it would encode images; `files` stand in place of those that it names."""
    (folder / "here").mkdir()
    with chdir(folder / "here"), ExitStack() as stack:
        _furnish()
        for name, content in files.items():
            Path(name).write_bytes(content)
        Path("tried.yaml").write_bytes(config)
        Path("base.yaml").write_text(json.dumps(_probe() | {"method": {"zero_shot": {}}, "seeds": []}))
        stack.enter_context(patch.dict(os.environ))
        stack.enter_context(patch("clip_ood.experiments.seeds.conduct", _accepted))
        stack.enter_context(
            patch(
                "clip_ood.experiments.study.conduct.conduct",
                lambda plan: [[*map(_accepted, plan.runs.values())], ({}, {})][1],
            )
        )
        stack.enter_context(
            patch("clip_ood.experiments.attack.conduct.conduct", lambda plan, folder: _accepted(plan.config))
        )
        main = {"train": train, "attack": attack, "study": study}[script].main
        answered(lambda: main(["--config", "tried.yaml", *options]))


def _furnish() -> None:
    """What the configs name, in the working folder."""
    root = lab.shared()
    Path("data").mkdir()
    for name in ("id", "near", "far", "lone"):
        Path("data", name).symlink_to(root / "data" / name)
    Path("clip").symlink_to(root / "clip")
    for name, text in LISTS.items():
        Path(name).write_text(text)
    Path("other.yaml").write_text(json.dumps({"model": "local-dir:clip"}))
    for label, name in enumerate(CLASSES):
        Path("data/more", str(label)).mkdir(parents=True)
        shutil.copy(root / "data" / "id" / name / "0.png", Path("data/more", str(label)))


def _accepted(config: Config, folder: Path = Path("runs"), source: Path | None = None) -> None:
    """What must hold of a config that was taken: it is read back as it was, its images are listed, and Lightning takes its keys."""
    again = validate(parse(dump(config).encode(errors="surrogateescape").decode(errors="surrogateescape")))
    assert contents(again) == contents(config), "its config.yaml is read back as another config"
    load_benchmark(config)
    evaluation = OODEvaluation(config.detectors)
    make_trainer(config, folder, evaluation, trains=True)
