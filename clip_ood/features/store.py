"""The feature store keeps the outputs of encoders for images and strings, computed once, resumable, and mapped when read.

    <root>/<encoder>/encoder.json       what the encoder is; touched by every run that reads from it
    <root>/<encoder>/images/…           an entry for each image: features (D), embeddings (E), valid
    <root>/<encoder>/texts/…            for each string: embeddings (E); for each word: features (E), the mean over prompts
    <root>/files/…                      which content a file was found to have, so that it is not read again

An image is identified by a hash of its file's bytes, whatever the file's name and folder. A file that was read before is
recognised by its path, size, times and inode.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.filesize import decimal
from torch import Tensor

from clip_ood.backbones.fingerprint import digest
from clip_ood.errors import UserError
from clip_ood.features.entries import Entries
from clip_ood.features.identity import identity_of, pairs
from clip_ood.features.known_files import KnownFiles
from clip_ood.features.segment import StoreError
from clip_ood.features.stored_set import Images, Known, StoredSet, made_with
from clip_ood.files.writing import check_writable, written_whole
from clip_ood.outputs import NegativeLabels
from clip_ood.texts.prompts import Phrases

PART = 1024  # images: a killed run loses at most this many in each process
FORMAT = 2  # of the files; a store of another format is not read
SCALE = pairs([identity_of("logit scale")])
BIAS = pairs([identity_of("logit bias")])  # NaN where the model has none


@dataclass(frozen=True)
class TextEmbeddings:
    """Unit-norm embeddings (K, E) of K strings, the model's logit scale, negative labels by detector, if any, and the model's logit
    bias, if it has one."""

    embeddings: Tensor
    logit_scale: float
    negatives: dict[str, NegativeLabels] = field(default_factory=dict)
    logit_bias: float | None = None


def folder_of(root: Path, fingerprint: dict[str, Any]) -> Path:
    """Returns the folder in which everything stored of an encoder lies."""
    return root / digest([FORMAT, fingerprint])


def dtype_of(precision: str) -> torch.dtype:
    """Returns the dtype in which features of an encoder in this precision are kept; half precisions are kept as float16."""
    return torch.float32 if precision == "fp32" else torch.float16


class FeatureStore:
    """Everything that is stored of one encoder under a root folder.

    `fingerprint` is the encoder's, from `clip_ood.backbones.fingerprint`.
    """

    def __init__(self, root: Path, fingerprint: dict[str, Any]) -> None:
        self.root, self.fingerprint = Path(root), fingerprint
        self.folder = folder_of(self.root, fingerprint)
        self.dtype = dtype_of(fingerprint["precision"])
        self.images, self.texts = Entries(self.folder / "images"), Entries(self.folder / "texts")

    @cached_property
    def files(self) -> KnownFiles:
        """The content of each file that was read, by any encoder."""
        return KnownFiles(self.root)

    def image_set(self, name: str, images: Images, arrays: Sequence[str] = ("features",)) -> StoredSet:
        """Returns the entries of a list of images with the wanted arrays; with no arrays, only whether images can be read."""
        return StoredSet(name, self, self.images, arrays, images)

    def word_set(self, name: str, phrases: Phrases) -> StoredSet:
        """Returns the entries of words, each the mean over prompts."""
        kind = "word of raw averages" if phrases.raw else "word"
        identities = pairs([identity_of(kind, word, *phrases.prompts) for word in phrases.words])
        return StoredSet(name, self, self.texts, ["features"], Known(phrases.words, identities))

    def missing_texts(self, strings: Sequence[str]) -> list[str]:
        """Returns those strings whose embeddings are missing, each once and in their order, or all if the logit scale or the logit
        bias is missing."""
        wanted = list(dict.fromkeys(strings))
        known = self.texts.has(SCALE, ["logit_scale"])[0] and self.texts.has(BIAS, ["logit_bias"])[0]
        if not wanted or not known:
            return wanted
        there = self.texts.has(_strings(wanted), ["embeddings"])
        return [string for string, known in zip(wanted, there, strict=True) if not known]

    def texts_of(self, strings: Sequence[str]) -> TextEmbeddings:
        """Returns the embeddings of these strings, in their order. Raises: KeyError if some are not there."""
        rows = self.texts.rows(_strings(strings), ["embeddings"])["embeddings"]
        scale = self.texts.rows(SCALE, ["logit_scale"])["logit_scale"].take(torch.zeros(1, dtype=torch.long))
        bias = self.texts.rows(BIAS, ["logit_bias"])["logit_bias"].take(torch.zeros(1, dtype=torch.long)).item()
        bias = None if isnan(bias) else bias
        return TextEmbeddings(rows.take(torch.arange(len(rows))), scale.item(), logit_bias=bias)

    def write_texts(self, strings: Sequence[str], text: TextEmbeddings) -> None:
        """Keeps the embeddings of these strings. Raises: ValueError for NaN or Inf."""
        if not text.embeddings.isfinite().all():
            raise UserError("The text encoder gives NaN or Inf. Try backbone.precision=fp32, and check the weights.")
        self.describe()
        self.texts.add(_strings(strings), {"embeddings": text.embeddings.float().cpu()}, made_with=made_with(None))
        scale = torch.tensor([[text.logit_scale]], dtype=torch.float64)
        self.texts.add(SCALE, {"logit_scale": scale}, made_with=made_with(None))
        bias = torch.tensor([[nan if text.logit_bias is None else text.logit_bias]], dtype=torch.float64)
        self.texts.add(BIAS, {"logit_bias": bias}, made_with=made_with(None))

    def describe(self) -> None:
        """Writes what the encoder is, once. Raises: StoreError if the store cannot be written."""
        path = self.folder / "encoder.json"
        if path.is_file():
            return
        try:
            with written_whole(path) as file:
                file.write(json.dumps(self.fingerprint, indent=1, default=str).encode())
        except OSError as error:
            raise StoreError(self._not_writable(error)) from error

    def check_writable(self, size: int = 0) -> None:
        """Raises: StoreError before anything is made, if nothing can be written or there is no room for `size` bytes."""
        self.describe()
        try:
            check_writable(self.folder)
        except OSError as error:
            raise StoreError(self._not_writable(error)) from error
        if size > (free := shutil.disk_usage(self.folder).free):
            raise StoreError(
                f"{self.root} has room for {decimal(free)}, and the features that are to come take {decimal(size)}: free some room "
                "there, or name another folder with --features_root"
            )

    def _not_writable(self, error: OSError) -> str:
        return (
            f"{self.root} does not hold all features that are needed, and cannot be written ({error.strerror}): name another "
            "folder with --features_root"
        )

    def touch(self) -> None:
        """Notes that the encoder's entries are used."""
        with suppress(OSError):  # nothing is stored yet, or the store cannot be written
            os.utime(self.folder / "encoder.json")

    def merge(self) -> None:
        """Merges many small segments into few large ones."""
        for entries in (self.images, self.texts, self.files):
            entries.merge()


def _strings(strings: Sequence[str]) -> np.ndarray:
    return pairs([identity_of("string", string) for string in strings])
