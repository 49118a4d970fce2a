"""Wrong values in a detector's folder: in its manifest, sealed again as a stranger would, and in its tensors."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clip_ood import load
from clip_ood.backbones.fingerprint import sha256
from clip_ood.detect.manifest import sealed
from clip_ood.detect.saved import SavedDetector
from faults import lab
from faults.mutated import answered, bytes_of, in_parts, mutations
from faults.trial import Trial

SEED = 20
MANIFEST = "detector.json"
TENSORS = ("state.safetensors", "bank-00000.safetensors")
WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "of another precision": lambda tensor: tensor.half() if tensor.is_floating_point() else tensor.int(),
    "of whole numbers": lambda tensor: tensor.long() if tensor.is_floating_point() else tensor.float(),
    "of bytes": lambda tensor: tensor.to(torch.uint8),
    "NaN": lambda tensor: torch.full_like(tensor.float(), torch.nan),
    "infinite": lambda tensor: torch.full_like(tensor.float(), torch.inf),
    "huge": lambda tensor: tensor * 10**15,
    "negative": lambda tensor: -tensor - 1,
    "empty": lambda tensor: tensor[:0] if tensor.ndim else tensor[None][:0],
    "one row short": lambda tensor: tensor[:-1] if tensor.ndim else tensor[None],
    "a row longer": lambda tensor: torch.cat([tensor, tensor[:1]]) if tensor.ndim else tensor[None],
    "a column short": lambda tensor: tensor[..., :-1] if tensor.ndim > 1 else tensor[None],
    "turned": lambda tensor: tensor.T.contiguous() if tensor.ndim > 1 else tensor[:, None] if tensor.ndim else tensor,
    "of another dimension": lambda tensor: tensor[None],
    "one number": lambda tensor: tensor.flatten()[0] if tensor.numel() else tensor,
}


@cache
def trials() -> list[Trial]:
    return in_parts("a detector's folder", _all)


@cache
def _all() -> list[tuple[str, Any]]:
    folder, numbers = lab.shared() / "runs/finished/detector", random.Random(SEED)
    manifest = json.loads((folder / MANIFEST).read_text())
    found = [(f"manifest: {what}", partial(_sealed, content)) for what, content in mutations(manifest)]
    for name in (MANIFEST, *TENSORS):
        whole = (folder / name).read_bytes()
        found += [(f"{name}: {what}", partial(_of_bytes, name, content)) for what, content in bytes_of(whole, numbers)]
    for name in TENSORS:
        for key in sorted(load_file(folder / name)):
            found += [(f"{name}: {key} {what}", partial(_of_tensors, name, key, wrong)) for what, wrong in _changes()]
    return found


def _changes() -> Iterator[tuple[str, Callable[[Tensor], Tensor] | None]]:
    yield "left out", None
    yield from WRONG.items()


def _sealed(manifest: Any, folder: Path) -> None:
    copy = _copied(folder)
    content = sealed(manifest) if isinstance(manifest, dict) else manifest
    (copy / MANIFEST).write_text(json.dumps(content))
    _judge(copy)


def _of_bytes(name: str, content: bytes, folder: Path) -> None:
    """As they stand, and, but for the manifest, with a digest that fits."""
    copy = _copied(folder)
    (copy / name).write_bytes(content)
    _judge(copy)
    if name != MANIFEST:
        _seal(copy)
        _judge(copy)


def _of_tensors(name: str, key: str, wrong: Callable[[Tensor], Tensor] | None, folder: Path) -> None:
    copy = _copied(folder)
    tensors = load_file(copy / name)
    value = tensors.pop(key)
    save_file(tensors if wrong is None else tensors | {key: wrong(value).contiguous()}, copy / name)
    _seal(copy)
    _judge(copy)


def _copied(folder: Path) -> Path:
    return Path(shutil.copytree(lab.shared() / "runs/finished/detector", folder / "detector"))


def _seal(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] |= {name: sha256(folder / name) for name in TENSORS}
    (folder / MANIFEST).write_text(json.dumps(sealed(manifest)))


def _judge(folder: Path) -> None:
    """Judges images by all detectors, and asks for one that is not there."""
    images = sorted((lab.shared() / "data/near").iterdir())
    expected = _expected()

    def work() -> None:
        predictor = load(folder, detector="all")
        predictions = predictor(images)
        assert {each.detector for each in predictions} == set(SavedDetector(folder).columns)
        known = {(each.path, each.detector): each for each in expected}
        for each in predictions:
            assert each.score == each.score, f"{each.detector} gives NaN"
            was = known.get((each.path, each.detector))
            assert was is None or 0 <= each.p_value <= 1

    answered(work)


@cache
def _expected() -> list[Any]:
    return load(lab.shared() / "runs/finished", detector="all")(sorted((lab.shared() / "data/near").iterdir()))
