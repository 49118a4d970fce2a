"""Identifies an encoder's outputs without loading its weights."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from clip_ood.backbones.library import library
from clip_ood.backbones.spec import BackboneSpec
from clip_ood.backbones.weights import local_weights, remote_weights
from clip_ood.files.cache import cache
from clip_ood.files.records import Unfit, read_json
from clip_ood.files.regular_file import check_regular
from clip_ood.files.writing import write_text


def fingerprint(spec: BackboneSpec, hashes: Path) -> dict[str, Any]:
    """Returns architecture, weights, preprocessing and precision of an encoder; equal fingerprints mean equal features.

    weights is a hub revision, the SHA-256 of a local file (remembered in the JSON file `hashes` by path, size and
    mtime), or the seed of random weights.
    """
    own = library(spec.library).fingerprint(spec, hashes)
    changed = {"pooling": spec.pooling} if spec.pooling != "default" else {}
    changed |= {} if spec.image_size is None else {"image_size": spec.image_size}
    return {"library": spec.library, "model": spec.model, "precision": spec.precision, **own, **changed}


def digest(value: Any) -> str:
    """Returns 16 hex digits that identify a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def weights_of(spec: BackboneSpec, hashes: Path) -> str:
    """Returns a hub revision, the SHA-256 of a local file, or the seed of random weights."""
    if remote := remote_weights(spec):
        return remote.revision()
    file = local_weights(spec)
    return file_hash(file, hashes) if file else f"random:{spec.random_seed}"


def file_hash(path: Path, remembered: Path) -> str:
    """Returns the SHA-256 of a file, computed once for each (path, size, times, inode).

    It is remembered in a JSON file, or in the user's cache if that cannot be written.

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
    """Returns hashes written before, or none if the file is missing or damaged, because they can be computed again."""
    try:
        known = read_json(path)
    except (OSError, Unfit):
        return {}
    return {key: value for key, value in known.items() if isinstance(value, str)} if isinstance(known, dict) else {}


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, 64 hex digits. Raises: OSError for anything but a file (a device may never end)."""
    import rich.progress  # not at the top: --help would wait for it

    from clip_ood.terminal.console import Terminal

    content = hashlib.sha256()
    small = check_regular(path) < 2**28  # is read within a second
    with rich.progress.open(
        path, "rb", description=f"Hashing {path.name}", console=Terminal(), transient=True, disable=small
    ) as file:
        while block := file.read(1 << 20):
            content.update(block)
    return content.hexdigest()
