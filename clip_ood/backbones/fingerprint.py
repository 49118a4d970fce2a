"""What identifies an encoder's outputs, known without loading its weights."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import rich.progress

from clip_ood.backbones.names import BackboneSpec
from clip_ood.backbones.weights import local_weights, remote_weights
from clip_ood.files.cache import cache
from clip_ood.files.records import Unfit, read_json, undamaged
from clip_ood.files.regular_file import check_regular
from clip_ood.files.writing import write_text
from clip_ood.terminal.console import Terminal

TEXT_FILES = ("config.json", "tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.model")


def fingerprint(spec: BackboneSpec, hashes: Path) -> dict[str, Any]:
    """Architecture, weights, preprocessing and precision of an encoder: equal fingerprints, equal features.

    weights is a hub revision, the SHA-256 of a local file (remembered in the JSON file `hashes` by path, size and
    mtime), or the seed of random weights. `text` stands for the text tower's configuration and tokenizer in a folder.
    """
    describe = _timm if spec.library == "timm" else _open_clip
    return {"library": spec.library, "model": spec.model, "precision": spec.precision, **describe(spec, hashes)}


def digest(value: Any) -> str:
    """16 hex digits that stand for a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _open_clip(spec: BackboneSpec, hashes: Path) -> dict[str, Any]:
    if spec.model.startswith("local-dir:"):
        return _folder(Path(spec.model.removeprefix("local-dir:")), spec, hashes)
    if spec.model.startswith("hf-hub:"):
        return {"weights": _weights(spec, hashes)}
    from open_clip import get_model_config

    from clip_ood.backbones.open_clip_backbone import training_tag, uses_quick_gelu

    prepared = {key: value for key, value in training_tag(spec).items() if key not in ("url", "hf_hub")}
    return {
        "architecture": digest(get_model_config(spec.model)),
        "quick_gelu": uses_quick_gelu(spec),
        "preprocessing": prepared,
        "weights": _weights(spec, hashes),
    }


def _folder(folder: Path, spec: BackboneSpec, hashes: Path) -> dict[str, Any]:
    """The folder may move: its files are what counts."""
    with undamaged(folder / "open_clip_config.json"):
        config = read_json(folder / "open_clip_config.json")
    text_files = sorted({path for pattern in TEXT_FILES for path in folder.glob(pattern)})
    return {
        "model": "local-dir",
        "architecture": digest(_without_paths(config)),
        "weights": _weights(spec, hashes),
        "text": digest({path.name: file_hash(path, hashes) for path in text_files}),
    }


def _timm(spec: BackboneSpec, hashes: Path) -> dict[str, Any]:
    import timm
    from timm.models import get_pretrained_cfg

    if spec.pretrained is None:
        return {"weights": _weights(spec, hashes), "timm": timm.__version__}
    return {"weights": _weights(spec, hashes), "preprocessing": get_pretrained_cfg(spec.model).to_dict()}


def _weights(spec: BackboneSpec, hashes: Path) -> str:
    if remote := remote_weights(spec):
        return remote.revision()
    file = local_weights(spec)
    return file_hash(file, hashes) if file else f"random:{spec.random_seed}"


def file_hash(path: Path, remembered: Path) -> str:
    """SHA-256 of a file, computed once for each (path, size, times, inode) and remembered in a JSON file; in the user's cache where
    that cannot be written.

    Raises: FileNotFoundError.
    """
    path = path.resolve()
    stat = path.stat()
    key = f"{path}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}|{stat.st_ino}"
    places = (remembered, cache() / "hashes.json")
    for place in places:
        if found := _remembered(place).get(key):
            return found
    found = f"sha256:{sha256(path)}"
    for place in places:
        with suppress(OSError):
            _remember(place, _remembered(place) | {key: found})
            break
    return found


def _remember(path: Path, known: dict[str, str]) -> None:
    write_text(path, json.dumps(known, indent=1))


def _remembered(path: Path) -> dict[str, str]:
    """Hashes written before; none if the file is missing or damaged, for they can be computed again."""
    try:
        known = read_json(path)
    except (OSError, Unfit):
        return {}
    return {key: value for key, value in known.items() if isinstance(value, str)} if isinstance(known, dict) else {}


def sha256(path: Path) -> str:
    """The SHA-256 of a file, 64 hex digits. Raises: OSError for what is no file (a device may never end)."""
    content = hashlib.sha256()
    small = check_regular(path) < 2**28  # read within a second
    with rich.progress.open(
        path, "rb", description=f"Hashing {path.name}", console=Terminal(), transient=True, disable=small
    ) as file:
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()


def _without_paths(config: Any) -> Any:
    """A config without absolute paths: moving a folder changes no feature."""
    if isinstance(config, dict):
        return {key: _without_paths(value) for key, value in config.items()}
    return "" if isinstance(config, str) and os.path.isabs(config) else config
