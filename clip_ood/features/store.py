"""The feature store: what an encoder says of an image set, computed once, resumable, mapped when read.

    <root>/<encoder>/<set>/manifest.json      what the features are of, and the library versions they were made with
    <root>/<encoder>/<set>/chunk-00000.safetensors   features (n, D), embeddings (n, E), valid (n,), rows in set order
    <root>/<encoder>/<words>/…                 the same of words: features (n, E), means of unit text embeddings
    <root>/<encoder>/text/<strings>.safetensors      embeddings (K, E) of exact strings, in order

A chunk is written under a temporary name and renamed when it is whole, so that a killed run goes on from the last
whole chunk and two runs on one store never see half a file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clip_ood.backbones.fingerprint import digest
from clip_ood.features.rows import Rows
from clip_ood.outputs import NegativeLabels
from clip_ood.prompts import Phrases

CHUNK = 1024  # images: a killed run loses at most so many
FORMAT = 1  # of the files: another number, another store
ABANDONED = 3600  # seconds: a temporary file that has not grown for so long is a killed run's


class StoreError(ValueError):
    """The store holds something that is damaged or of something else, or cannot be written."""


@dataclass(frozen=True)
class Features:
    """The stored features of an image set: g, h (None for image-only encoders) and which rows could be read (N,) bool."""

    features: Rows
    embeddings: Rows | None
    valid: Tensor


@dataclass(frozen=True)
class StoredSet:
    """The place of one set of images or words under one encoder; it may be empty, part-filled or complete."""

    folder: Path
    name: str
    count: int
    identity: dict[str, str]
    dtype: torch.dtype

    @property
    def chunks(self) -> range:
        return range(-(-self.count // CHUNK))

    def rows(self, chunk: int) -> range:
        """The rows of a chunk."""
        return range(chunk * CHUNK, min((chunk + 1) * CHUNK, self.count))

    def chunk_of(self, row: int) -> int:
        """The chunk that holds a row."""
        return row // CHUNK

    def pending(self) -> list[int]:
        """Chunks that are not there yet."""
        return [chunk for chunk in self.chunks if not self._path(chunk).is_file()]

    def write(
        self,
        chunk: int,
        features: Tensor,
        embeddings: Tensor | None,
        errors: dict[int, str],
        batch_size: int | None = None,
    ) -> None:
        """Writes one whole chunk; `errors` tells, by row of the chunk, why an image could not be read, `batch_size` how
        many images a forward pass had.

        Raises: ValueError for NaN or Inf features of readable images.
        """
        valid = torch.ones(len(features), dtype=torch.bool)
        valid[list(errors)] = False
        tensors = {"features": features, "embeddings": embeddings}
        tensors = {key: value.to(self.dtype).contiguous() for key, value in tensors.items() if value is not None}
        for tensor in tensors.values():
            tensor[~valid] = 0
            if broken := int((~tensor.isfinite().all(dim=1)).sum()):
                rows = self.rows(chunk)
                raise ValueError(
                    f"Image set {self.name}: {broken} of the images {rows.start}–{rows.stop - 1} have NaN or Inf features "
                    f"as {str(self.dtype).removeprefix('torch.')}. Try backbone.precision=fp32, and check the weights."
                )
        self._write_manifest({key: value.shape[1] for key, value in tensors.items()}, batch_size)
        described = self._described(chunk) | {"errors": errors}
        _write(self._path(chunk), tensors | {"valid": valid}, described)

    def open(self) -> Features:
        """The stored features, mapped.

        Raises: StoreError for a chunk that is damaged or of other images, FileNotFoundError for a missing one.
        """
        if pending := self.pending():
            raise FileNotFoundError(
                f"Image set {self.name}: {len(pending)} of {len(self.chunks)} chunks of its features are missing in "
                f"{self.folder}; run again, without trainer.limit_predict_batches and trainer.fast_dev_run"
            )
        parts = [self._open(chunk) for chunk in self.chunks]
        embeddings = Rows(tuple(part["embeddings"] for part in parts)) if "embeddings" in parts[0] else None
        features = Rows(tuple(part["features"] for part in parts))
        return Features(features, embeddings, torch.cat([part["valid"] for part in parts]))

    @cached_property
    def errors(self) -> dict[int, str]:
        """Why images could not be read, by row of the set."""
        found = {}
        for chunk in self.chunks:
            errors = _read(self._path(chunk))[0]["errors"]
            found |= {self.rows(chunk).start + int(row): reason for row, reason in errors.items()}
        return found

    def _open(self, chunk: int) -> dict[str, Tensor]:
        path = self._path(chunk)
        metadata, tensors = _read(path)
        expected = self._described(chunk)
        matches = {key: metadata.get(key) for key in expected} == expected
        if not matches or {len(tensor) for tensor in tensors.values()} != {len(self.rows(chunk))}:
            raise StoreError(f"{path} holds features of something else; delete it to have it made again")
        return tensors

    def _described(self, chunk: int) -> dict[str, Any]:
        return self.identity | {"chunk": chunk}

    def _path(self, chunk: int) -> Path:
        return self.folder / f"chunk-{chunk:05d}.safetensors"

    def _write_manifest(self, widths: dict[str, int], batch_size: int | None) -> None:
        path = self.folder / "manifest.json"
        if path.is_file():
            return
        libraries = {name: version(name) for name in ("torch", "torchvision", "open_clip_torch", "timm")}
        content = {"name": self.name, "images": self.count, "rows_per_chunk": CHUNK, "dtype": str(self.dtype)}
        content |= {"widths": widths, "batch_size": batch_size}
        _write_json(path, content | self.identity | {"libraries": libraries})


@dataclass(frozen=True)
class TextEmbeddings:
    """Unit-norm embeddings (K, E) of K strings, the model's logit scale, and negative labels by detector, if any."""

    embeddings: Tensor
    logit_scale: float
    negatives: dict[str, NegativeLabels] = field(default_factory=dict)


class FeatureStore:
    """All features of one encoder under a root folder.

    `fingerprint` is what `clip_ood.backbones.fingerprint` says of the encoder; half precision is stored as float16.
    """

    def __init__(self, root: Path, fingerprint: dict[str, Any]) -> None:
        self.fingerprint = fingerprint
        self.encoder = digest([FORMAT, fingerprint])
        self.folder = Path(root) / self.encoder
        self.dtype = torch.float32 if fingerprint["precision"] == "fp32" else torch.float16

    def image_set(self, name: str, files: list[tuple]) -> StoredSet:
        """The place of the image set whose images are `files`: (relative path, size, mtime) each."""
        return self._set(name, len(files), digest([CHUNK, *files]))

    def word_set(self, name: str, phrases: Phrases) -> StoredSet:
        """The place of the embeddings of words, one a word."""
        return self._set(name, len(phrases.words), digest([CHUNK, "words", phrases.prompts, phrases.words]))

    def _set(self, name: str, count: int, key: str) -> StoredSet:
        identity = {"encoder": self.encoder, "files": key}
        folder = self.folder / identity["files"]
        _remove_abandoned(folder)
        if not (described := self.folder / "encoder.json").is_file():
            _write_json(described, self.fingerprint)
        return StoredSet(folder, name, count, identity, self.dtype)

    def texts(self, strings: list[str]) -> TextEmbeddings | None:
        """The embeddings of exactly these strings in this order; None if they are not there yet."""
        path = self._text_path(strings)
        if not path.is_file():
            return None
        metadata, tensors = _read(path)
        if metadata.get("strings") != strings:
            raise StoreError(f"{path} holds embeddings of other strings; delete it to have it made again")
        return TextEmbeddings(tensors["embeddings"], metadata["logit_scale"])

    def write_texts(self, strings: list[str], text: TextEmbeddings) -> None:
        """Keeps the embeddings of these strings."""
        if not text.embeddings.isfinite().all():
            raise ValueError("The text encoder gives NaN or Inf. Try backbone.precision=fp32, and check the weights.")
        described = {"strings": strings, "logit_scale": text.logit_scale}
        _write(self._text_path(strings), {"embeddings": text.embeddings.float().cpu().contiguous()}, described)

    def _text_path(self, strings: list[str]) -> Path:
        return self.folder / "text" / f"{digest(strings)}.safetensors"


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and mapped tensors of a file."""
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {}).get("about", "{}"))
            return metadata, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise StoreError(f"{path} is damaged ({error}); delete it to have it made again") from error


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    with _whole(path) as temporary:
        try:
            save_file(tensors, temporary, {"about": json.dumps(metadata)})  # several keys would come in any order
        except SafetensorError as error:
            raise StoreError(f"{path} cannot be written ({error}); what is whole is kept for the next run") from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with _whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A name to write under that becomes `path` once the file is whole, and goes if it cannot be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_abandoned(folder: Path) -> None:
    for file in folder.glob("*.tmp"):
        with suppress(FileNotFoundError):  # another run removes it too
            if time.time() - file.stat().st_mtime > ABANDONED:
                file.unlink()
