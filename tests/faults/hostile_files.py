"""Pipes, sockets and endless devices in place of each file that a command reads: it never waits for them, and says what they are."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

from clip_ood.detect.manifest import sealed
from faults import lab, process
from faults.trial import Trial

SECONDS = 90


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    held = socket.socket(socket.AF_UNIX)  # its file stays when it is closed
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)  # a socket's path may be a hundred characters long
    try:
        held.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)
        held.close()


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


KINDS: dict[str, Callable[[Path], None]] = {"a pipe": _pipe, "a socket": _socket, "/dev/zero": _endless}


def _put(make: Callable[[Path], None], path: Path) -> Path:
    path.unlink(missing_ok=True)
    make(path)
    return path


def _key(option: str, name: str, make: Callable[[Path], None], folder: Path) -> list[str]:
    return lab.train(folder, "train", lab.PROBE, f"--{option.format(_put(make, folder / name))}")


def _in_a_set(name: str, make: Callable[[Path], None], folder: Path) -> list[str]:
    shutil.copytree(lab.shared() / "data" / "near", folder / "near")
    _put(make, folder / "near" / name)
    return lab.train(folder, "train", lab.PROBE, f"--data.ood={{near: {folder}/near}}")


def _judged(name: str, make: Callable[[Path], None], folder: Path) -> list[str]:
    out = ["--out", f"{folder}/predictions.csv"]
    return ["detect.py", "--run", f"{lab.shared()}/runs/finished", str(_put(make, folder / name)), *out]


def _in_a_run(name: str, make: Callable[[Path], None], folder: Path) -> list[str]:
    shutil.copytree(lab.shared() / "runs" / "finished", folder / "run")
    _put(make, folder / "run" / name)
    script = ["detect.py", f"{lab.shared()}/data/near"] if name.startswith("detector") else ["eval.py"]
    return [script[0], "--run", f"{folder}/run", *script[1:]]


def _in_an_encoder(name: str, make: Callable[[Path], None], folder: Path) -> list[str]:
    shutil.copytree(lab.shared() / "clip", folder / "clip")
    _put(make, folder / "clip" / name)
    return lab.train(folder, "train", lab.PROBE, f"--backbone.model=local-dir:{folder}/clip")


def _in_a_store(name: str, make: Callable[[Path], None], folder: Path) -> list[str]:
    command = lab.train(folder, "train", lab.PROBE, f"--features_root={folder}/store")
    assert process.run([*command, "--name=first"], folder / "first").status == 0
    for place in {path.parent for path in (folder / "store").rglob("*.safetensors")}:
        _put(make, place / name)
    return command


def _config(make: Callable[[Path], None], folder: Path) -> list[str]:
    return ["train.py", "--config", str(_put(make, folder / "x.yaml"))]


def _study(make: Callable[[Path], None], folder: Path) -> list[str]:
    return ["study.py", "--config", str(_put(make, folder / "x.yaml"))]


def _stranger(make: Callable[[Path], None], folder: Path) -> list[str]:
    """A sealed detector folder whose encoder is no file."""
    shutil.copytree(lab.shared() / "runs" / "finished" / "detector", folder / "detector")
    manifest = json.loads((folder / "detector" / "detector.json").read_text())
    manifest["encoder"]["spec"] |= {
        "library": "timm",
        "model": "vit_tiny_patch16_224",
        "pretrained": str(folder / "x.pt"),
    }
    (folder / "detector" / "detector.json").write_text(json.dumps(sealed(manifest)))
    _put(make, folder / "x.pt")
    return ["detect.py", "--run", f"{folder}/detector", f"{lab.shared()}/data/near"]


PLACES: dict[str, Callable[[Callable[[Path], None], Path], list[str]]] = {
    "the class names": partial(_key, "data.id.class_names={}", "names.txt"),
    "the negative words": partial(_key, "data.negative_words={}", "words.txt"),
    "the images left out of the bank": partial(_key, "evaluation.bank_without={}", "list.txt"),
    "a list of images": partial(_key, "data.ood={{x: {{list: {}}}}}", "list.txt"),
    "a shard": partial(_key, "data.ood={{x: {{shards: {}}}}}", "x.tar"),
    "a folder": partial(_key, "data.ood={{x: {}}}", "x"),
    "an image of a set": partial(_in_a_set, "x.png"),
    "no image of a set": partial(_in_a_set, "notes.txt"),
    "the config": _config,
    "the config of a study": _study,
    "an image to judge": partial(_judged, "x.jpg"),
    "a list to judge": partial(_judged, "x.txt"),
    "a shard to judge": partial(_judged, "x.tar"),
    "the manifest of a detector": partial(_in_a_run, "detector/detector.json"),
    "the state of a detector": partial(_in_a_run, "detector/state.safetensors"),
    "the config of a run": partial(_in_a_run, "config.yaml"),
    "the checkpoint of a run": partial(_in_a_run, "checkpoints/last.ckpt"),
    "the results of a run": partial(_in_a_run, "results.json"),
    "the configuration of an encoder": partial(_in_an_encoder, "open_clip_config.json"),
    "the weights of an encoder": partial(_in_an_encoder, "open_clip_pytorch_model.bin"),
    "the tokenizer of an encoder": partial(_in_an_encoder, "tokenizer.json"),
    "the checkpoint that a detector names": _stranger,
    "a segment of the store": partial(_in_a_store, "x.safetensors"),
    "a file that a killed run has left in the store": partial(_in_a_store, "x.tmp"),
}


def _try(place: str, kind: str, folder: Path) -> None:
    command = PLACES[place](KINDS[kind], folder)
    ended = process.Started(command, folder / "log").finish(SECONDS)
    assert not ended.traceback and ended.status in (0, 1, 2), ended.said
    assert ended.status == 0 or "error: " in ended.said, ended.said


SAMPLE = ("the class names", "an image to judge", "a list to judge", "the manifest of a detector")


def trials() -> list[Trial]:
    return [
        Trial(f"{kind} as {place}", partial(_try, place, kind), sample=kind == "a pipe" and place in SAMPLE)
        for place in PLACES
        for kind in KINDS
    ]
