"""The feature store: what an encoder says of images and strings, computed once, resumable, mapped when read.

    <root>/<encoder>/encoder.json       what the encoder is; touched by every run that reads from it
    <root>/<encoder>/images/…           an entry an image: features (D), embeddings (E), valid
    <root>/<encoder>/texts/…            an entry a string: embeddings (E); an entry a word: features (E), the mean over prompts
    <root>/files/…                      which content a file was found to have, so that it is not read again

An image is told by a hash of its file's bytes, whatever the file is called and wherever it lies; a file is known again by its
path, size, times and inode.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from clip_ood.backbones.fingerprint import digest
from clip_ood.features.entries import Entries
from clip_ood.features.identity import identity_of, pairs
from clip_ood.features.rows import Rows
from clip_ood.features.segment import whole
from clip_ood.outputs import NegativeLabels
from clip_ood.prompts import Phrases

PART = 1024  # images: a killed run loses at most so many a process
FORMAT = 2  # of the files: another number, another store
SAMPLE = 64  # files that are read again where a file system does not tell that a file has changed
SCALE = pairs([identity_of("logit scale")])


class Images(Protocol):
    """What the store asks of a list of N images."""

    def __len__(self) -> int: ...

    def identities(self) -> np.ndarray | None:
        """(N, 2), where the images lie in memory; None where they are files, which must be read first."""

    def stamps(self) -> tuple[np.ndarray, np.ndarray]:
        """(N, 2): what says that a file is the one that was read; (N,) bool: whose change could go unnoticed."""

    def identify(self, index: int) -> bytes:
        """The identity of an image, which is read."""


@dataclass(frozen=True)
class Features:
    """The stored features of an image set: g, h (None for image-only encoders), which rows could be read (N,) bool, and what
    tells the images apart (N, 2)."""

    features: Rows
    embeddings: Rows | None
    valid: Tensor
    identities: np.ndarray | None = field(default=None, compare=False)


class StoredSet:
    """One set of images or words under one encoder; none, some or all of its entries may be there.

    `identify` gives the identities (N, 2) and which of them are known (N,): an image that was never read has none.
    """

    def __init__(
        self,
        name: str,
        store: FeatureStore,
        entries: Entries,
        arrays: Sequence[str],
        identify: Callable[[], tuple[np.ndarray, np.ndarray]],
    ) -> None:
        self.name, self.store, self.entries, self.arrays = name, store, entries, tuple(arrays)
        self._identify = identify

    @cached_property
    def _identities(self) -> tuple[np.ndarray, np.ndarray]:
        return self._identify()

    def refresh(self) -> None:
        """Looks again at the files and at what is stored."""
        self.entries.refresh()
        self.__dict__.pop("_identities", None)

    def missing(self) -> np.ndarray:
        """Rows of the set that must be read or encoded, ascending; those in `derivable` need not be."""
        identities, known = self._identities
        stored = known.copy()
        stored[known] = self.entries.has(identities[known], [*self.arrays, "valid"])
        return np.flatnonzero(~stored)

    def derivable(self, rows: np.ndarray) -> np.ndarray:
        """Those of some rows whose features are there, so that their embeddings can be computed from these."""
        identities, known = self._identities
        rows = rows[known[rows]]
        return rows[self.entries.has(identities[rows], ["features", "valid"])]

    def identities_of(self, rows: np.ndarray) -> np.ndarray:
        """(n, 2) of rows that are known."""
        return self._identities[0][rows]

    def add(
        self,
        identities: np.ndarray,
        arrays: Mapping[str, Tensor],
        errors: Mapping[int, str] | None = None,
        batch_size: int | None = None,
        name: str = "",
    ) -> Path:
        """Writes entries (n, 2); `errors`: by row, why an image could not be read, `batch_size`: images a forward pass.

        Raises: ValueError for NaN or Inf in arrays of readable images, StoreError where it cannot be written.
        """
        derived = "features" not in arrays  # which images could be read stands beside their features
        valid = torch.ones(len(identities), dtype=torch.bool)
        if derived:
            valid = self.entries.rows(identities, "valid").take(torch.arange(len(identities)))
        valid[list(errors or {})] = False
        kept = {key: value.to("cpu", self.store.dtype, copy=True) for key, value in arrays.items()}
        for values in kept.values():
            values[~valid] = 0
            if broken := int((~values.isfinite().all(dim=1)).sum()):
                raise ValueError(
                    f"Image set {self.name}: {broken} of {len(values)} images have NaN or Inf features as "
                    f"{str(self.store.dtype).removeprefix('torch.')}. Try backbone.precision=fp32, and check the weights."
                )
        self.store.describe()
        kept = kept if derived else kept | {"valid": valid}
        return self.entries.add(identities, kept, errors, made_with(batch_size), name)

    def remember(self, stamps: np.ndarray, identities: np.ndarray, name: str = "") -> Path:
        """Keeps which content (n, 2) the files with these stamps (n, 2) have; those in memory have none."""
        files = self.store.files
        known = np.flatnonzero(files.has(stamps, ["identity"]))
        if len(known):  # found to hold something else: remembered wrongly, or written anew without a sign
            was = files.rows(stamps[known], "identity").take(torch.arange(len(known))).numpy().view(np.uint64)
            if len(stale := known[(was != identities[known]).any(axis=1)]):
                files.remove(stamps[stale])
        content = torch.from_numpy(identities.view(np.int64).copy())
        return files.add(stamps, {"identity": content}, name=name)

    def open(self) -> Features:
        """The stored features, mapped. Raises: FileNotFoundError where some are not there."""
        if len(missing := self.missing()):
            raise FileNotFoundError(
                f"Image set {self.name}: the features of {len(missing):,} of {len(self._identities[0]):,} images are missing "
                f"in {self.entries.folder}; run again, without trainer.limit_predict_batches and trainer.fast_dev_run"
            )
        identities, _ = self._identities
        found = {name: self.entries.rows(identities, name) for name in self.arrays}
        valid = self.entries.rows(identities, "valid").take(torch.arange(len(identities)))
        return Features(found["features"], found.get("embeddings"), valid, identities)

    @cached_property
    def errors(self) -> dict[int, str]:
        """Why images could not be read, by row of the set."""
        return self.entries.errors(self._identities[0])


@dataclass(frozen=True)
class TextEmbeddings:
    """Unit-norm embeddings (K, E) of K strings, the model's logit scale, and negative labels by detector, if any."""

    embeddings: Tensor
    logit_scale: float
    negatives: dict[str, NegativeLabels] = field(default_factory=dict)


class FeatureStore:
    """All that is stored of one encoder under a root folder.

    `fingerprint` is what `clip_ood.backbones.fingerprint` says of the encoder; half precision is stored as float16.
    """

    def __init__(self, root: Path, fingerprint: dict[str, Any]) -> None:
        self.root, self.fingerprint = Path(root), fingerprint
        self.folder = self.root / digest([FORMAT, fingerprint])
        self.dtype = torch.float32 if fingerprint["precision"] == "fp32" else torch.float16
        self.images, self.texts = Entries(self.folder / "images"), Entries(self.folder / "texts")

    @cached_property
    def files(self) -> Entries:
        """The content of each file that was read."""
        return Entries(self.root / "files", factor=8)  # 40 bytes each

    def image_set(self, name: str, images: Images, arrays: Sequence[str] = ("features",)) -> StoredSet:
        """The entries of a list of images, with the arrays that are wanted of each."""

        def identify() -> tuple[np.ndarray, np.ndarray]:
            if (identities := images.identities()) is not None:
                return identities, np.ones(len(images), bool)
            return self._known_files(images)

        return StoredSet(name, self, self.images, arrays, identify)

    def _known_files(self, images: Images) -> tuple[np.ndarray, np.ndarray]:
        """The identities of files that were read before, and which were."""
        self.files.refresh()
        stamps, vague = images.stamps()
        known = self.files.has(stamps, ["identity"])
        identities = np.zeros((len(images), 2), np.uint64)
        if known.any():
            rows = self.files.rows(stamps[known], "identity")
            identities[known] = rows.take(torch.arange(len(rows))).numpy().view(np.uint64)
        if self._differs(images, identities, np.flatnonzero(known & vague)):
            self.files.remove(stamps[known])
            known[:] = False
        return identities, known

    def _differs(self, images: Images, identities: np.ndarray, known: np.ndarray) -> bool:
        """Whether one of a sample of these files is not what it was."""
        sample = np.random.default_rng().permutation(known)[:SAMPLE]
        return any(images.identify(int(row)) != identities[row].astype("<u8").tobytes() for row in sample)

    def word_set(self, name: str, phrases: Phrases) -> StoredSet:
        """The entries of words, each the mean over prompts."""
        identities = pairs([identity_of("word", word, *phrases.prompts) for word in phrases.words])
        return StoredSet(name, self, self.texts, ["features"], lambda: (identities, np.ones(len(phrases.words), bool)))

    def missing_texts(self, strings: Sequence[str]) -> list[str]:
        """Those of some strings whose embeddings are not there, each once, in their order; all where the model's logit scale is
        not there."""
        wanted = list(dict.fromkeys(strings))
        if not wanted or not self.texts.has(SCALE, ["logit_scale"])[0]:
            return wanted
        there = self.texts.has(_strings(wanted), ["embeddings"])
        return [string for string, known in zip(wanted, there, strict=True) if not known]

    def texts_of(self, strings: Sequence[str]) -> TextEmbeddings:
        """The embeddings of these strings, in their order. Raises: KeyError where some are not there."""
        rows = self.texts.rows(_strings(strings), "embeddings")
        scale = self.texts.rows(SCALE, "logit_scale").take(torch.zeros(1, dtype=torch.long))
        return TextEmbeddings(rows.take(torch.arange(len(rows))), scale.item())

    def write_texts(self, strings: Sequence[str], text: TextEmbeddings) -> None:
        """Keeps the embeddings of these strings. Raises: ValueError for NaN or Inf."""
        if not text.embeddings.isfinite().all():
            raise ValueError("The text encoder gives NaN or Inf. Try backbone.precision=fp32, and check the weights.")
        self.describe()
        self.texts.add(_strings(strings), {"embeddings": text.embeddings.float().cpu()}, made_with=made_with(None))
        scale = torch.tensor([[text.logit_scale]], dtype=torch.float64)
        self.texts.add(SCALE, {"logit_scale": scale}, made_with=made_with(None))

    def describe(self) -> None:
        """Writes what the encoder is, once."""
        path = self.folder / "encoder.json"
        if not path.is_file():
            with whole(path) as file:
                file.write(json.dumps(self.fingerprint, indent=1, default=str).encode())

    def touch(self) -> None:
        """Notes that the encoder's entries are used."""
        with suppress(OSError):  # nothing is stored yet, or the store cannot be written
            os.utime(self.folder / "encoder.json")

    def merge(self) -> None:
        """Few large segments out of many small ones."""
        for entries in (self.images, self.texts, self.files):
            entries.merge()


def made_with(batch_size: int | None) -> dict[str, Any]:
    """What entries were made with: versions of libraries and the images of a forward pass."""
    libraries = {name: version(name) for name in ("torch", "torchvision", "open_clip_torch", "timm")}
    return libraries if batch_size is None else libraries | {"batch_size": batch_size}


def _strings(strings: Sequence[str]) -> np.ndarray:
    return pairs([identity_of("string", string) for string in strings])
