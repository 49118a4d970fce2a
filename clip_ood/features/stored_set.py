"""A set of images or words under one encoder: which of its entries are stored, and these entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from clip_ood.errors import UserError
from clip_ood.features.entries import Entries
from clip_ood.features.rows import Rows
from clip_ood.features.segment import Failure, StoreError
from clip_ood.files.pictures import decoders
from clip_ood.files.unreadable import NO_MEMORY

if TYPE_CHECKING:
    from clip_ood.features.store import FeatureStore

SAMPLE = 64  # files that are read again where a file system does not tell that a file has changed
DERIVED = {"embeddings": "features"}  # arrays that can be computed from others


class Images(Protocol):
    """The interface that the store needs of a list of N images."""

    names: Sequence[str]

    def __len__(self) -> int: ...

    def identities(self) -> np.ndarray | None:
        """The identities (N, 2) if the images lie in memory; None if they are files, which must be read first."""

    def stamps(self, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns, for these rows (None: all), the stamps (n, 2) and (n,) bool: whose change could go unnoticed.

        A stamp identifies the file that was read.
        """

    def content(self, row: int) -> bytes:
        """Reads a file, and returns the 16 bytes that identify its content."""

    def derived(self, contents: np.ndarray) -> np.ndarray:
        """Returns the identities (N, 2) of images whose files have these contents (N, 2); they differ only for corrupted images."""


class Known:
    """Things whose identities (N, 2) are known without reading a file."""

    def __init__(self, names: Sequence[str], identities: np.ndarray) -> None:
        self.names, self._identities = names, identities

    def __len__(self) -> int:
        return len(self._identities)

    def identities(self) -> np.ndarray:
        return self._identities


@dataclass(frozen=True)
class Features:
    """The stored features of an image set: g (None if it is not wanted), h (None for image-only encoders as well), (N,) bool:
    which rows could be read, the images' identities (N, 2), and layers and patch tokens by name, these of some rows only.
    """

    features: Rows | None
    embeddings: Rows | None
    valid: Tensor
    identities: np.ndarray | None = field(default=None, compare=False)
    layers: Mapping[str, Rows] = field(default_factory=dict)
    tokens: Mapping[str, Rows] = field(default_factory=dict)

    def with_tokens(self, others: Features, rows: Tensor) -> Features:
        """Returns the same features with the tokens of others besides, whose N' rows are those at `rows` (N',)."""
        tokens = others.spread(rows, len(self.valid)).tokens
        both = {kind: each.or_else(tokens[kind]) for kind, each in self.tokens.items() if kind in tokens}
        return replace(self, tokens={**self.tokens, **tokens, **both})

    def spread(self, rows: Tensor, count: int) -> Features:
        """Returns `count` rows of which those at `rows` (N,) are these; the others are not valid, and none of them may be taken."""

        def spread(value: Rows | None) -> Rows | None:
            return None if value is None else value.spread(rows, count)

        valid = torch.zeros(count, dtype=torch.bool)
        valid[rows] = self.valid
        arrays = {
            kind: {name: spread(each) for name, each in getattr(self, kind).items()} for kind in ("layers", "tokens")
        }
        return Features(spread(self.features), spread(self.embeddings), valid, **arrays)


class StoredSet:
    """One set of images or words under one encoder; none, some or all of its entries may be stored."""

    def __init__(
        self, name: str, store: FeatureStore, entries: Entries, arrays: Sequence[str], images: Images | Known
    ) -> None:
        self.name, self.store, self.entries, self.arrays, self.images = name, store, entries, tuple(arrays), images
        self._in_memory = images.identities()

    @cached_property
    def _stamps(self) -> tuple[np.ndarray, np.ndarray]:
        """The stamps of the files as the run found them at its beginning, whatever happens to the files later."""
        return self.images.stamps()

    @cached_property
    def _identities(self) -> tuple[np.ndarray, np.ndarray]:
        """The identities (N, 2), and (N,) bool: which are known.

        An image that was never read has a substitute made from its file's stamp, which is the same for the same file.
        """
        if self._in_memory is not None:
            return self._in_memory, np.ones(len(self.images), bool)
        stamps = self._stamps[0]
        contents, known = self.store.files.contents(stamps)
        return self.images.derived(np.where(known[:, None], contents, stamps)), known

    def refresh(self) -> None:
        """Looks again at what is stored."""
        self.entries.refresh()
        if self._in_memory is None:
            self.store.files.refresh()
            self.__dict__.pop("_identities", None)

    def check_files(self) -> None:
        """Reads a sample of those files whose change their file system does not tell; if one of them has changed, all of them
        count as never read. Images that another decoder could not read count as missing.
        """
        if self._in_memory is not None:
            return
        stamps, vague = self._stamps
        known = self._identities[1]
        sample = np.random.default_rng().permutation(np.flatnonzero(known & vague))[:SAMPLE]
        if len(sample) and self._differ(sample):
            self.store.files.forget(stamps[known])
            self._identities = self.images.derived(stamps), np.zeros(len(stamps), bool)
        identities = self._identities[0]
        failures = self.entries.failures(identities)
        if outdated := [row for row, failure in failures.items() if failure.tried != decoders()]:
            with suppress(StoreError):  # a store that can only be read keeps them as they are
                self.entries.remove(identities[outdated])

    def _differ(self, rows: np.ndarray) -> bool:
        """Reads the files of these rows, and says whether one of them has another content than is remembered."""
        contents, _ = self.store.files.contents(self._stamps[0][rows])
        held = [content.astype("<u8").tobytes() for content in contents]
        return any(self.images.content(int(row)) != known for row, known in zip(rows, held, strict=True))

    def missing(self) -> np.ndarray:
        """Returns the ascending rows that must be read, and encoded if arrays are wanted; rows in `derivable` need not be read."""
        identities, known = self._identities
        stored = known.copy()
        stored[known] = self.entries.has(identities[known], [*self.arrays, "valid"])
        return np.flatnonzero(~stored)

    def derivable(self, rows: np.ndarray) -> np.ndarray:
        """Returns those of some rows that lack only arrays which can be computed from what is stored."""
        if not self.arrays:
            return rows[:0]
        identities, known = self._identities
        rows = rows[known[rows]]
        needed = {DERIVED.get(name, name) for name in self.arrays}
        return rows[self.entries.has(identities[rows], sorted({*needed, "valid"}))]

    def identities_of(self, rows: np.ndarray) -> np.ndarray:
        """Returns identities (n, 2); for an image that was never read, its substitute."""
        return self._identities[0][rows]

    def changed(self, rows: np.ndarray) -> list[str]:
        """Returns the names of those of some rows whose files have changed since the beginning of the run."""
        if self._in_memory is not None or not len(rows):
            return []
        now, _ = self.images.stamps(rows)
        different = (now != self._stamps[0][rows]).any(axis=1)
        return [self.images.names[row] for row in rows[different]]

    def add(
        self,
        identities: np.ndarray,
        arrays: Mapping[str, Tensor],
        errors: Mapping[int, str] | None = None,
        batch_size: int | None = None,
        name: str = "",
    ) -> None:
        """Writes those arrays of entries (n, 2) that are not there yet; of an image that could be read before and now cannot, nothing.

        `errors`: by row, why an image could not be read; `batch_size`: images in a forward pass.
        Raises: ValueError for NaN or Inf in arrays of readable images, StoreError if the store cannot be written.
        """
        valid = torch.ones(len(identities), dtype=torch.bool)
        valid[list(errors or {})] = False
        if len(there := np.flatnonzero(self.entries.has(identities, ["valid"]))):
            of_those = self.entries.rows(identities[there], ["valid"])["valid"]
            valid[torch.from_numpy(there)] = of_those.take(torch.arange(len(there)))
        if lost := [row for row in errors or {} if valid[row]]:  # it was readable before, and its arrays are blank
            rest = np.setdiff1d(np.arange(len(identities)), lost)
            others = {int(np.searchsorted(rest, row)): why for row, why in errors.items() if row not in lost}
            some = {key: value[torch.from_numpy(rest)] for key, value in arrays.items()}
            self.add(identities[rest], some, others, batch_size, name)
            return
        kept = {key: value.to("cpu", self.store.dtype, copy=True) for key, value in arrays.items()}
        for values in kept.values():
            values[~valid] = 0
            if broken := int((~values.flatten(1).isfinite().all(dim=1)).sum()):
                raise UserError(
                    f"Image set {self.name}: {broken} of {len(values)} images have NaN or Inf features as "
                    f"{str(self.store.dtype).removeprefix('torch.')}. Try backbone.precision=fp32, and check the weights."
                )
        self.store.describe()
        tried = decoders()
        failures = {
            row: Failure(reason, "" if reason == NO_MEMORY else tried) for row, reason in (errors or {}).items()
        }  # the next run tries images again for which there was no memory
        self._add_missing(identities, kept | {"valid": valid}, failures, made_with(batch_size), name)

    def _add_missing(
        self,
        identities: np.ndarray,
        arrays: dict[str, Tensor],
        failures: dict[int, Failure],
        about: dict[str, Any],
        name: str,
    ) -> None:
        """Writes one segment for all entries that lack the same arrays, which are most often all of them."""
        lacking = np.stack([~self.entries.has(identities, [key]) for key in arrays], axis=1)
        for pattern in np.unique(lacking[lacking.any(axis=1)], axis=0):
            rows = np.flatnonzero((lacking == pattern).all(axis=1))
            new = {
                key: arrays[key][torch.from_numpy(rows)] for key, is_new in zip(arrays, pattern, strict=True) if is_new
            }
            place = {row: position for position, row in enumerate(rows.tolist())}
            told = {place[row]: failure for row, failure in failures.items() if row in place and "valid" in new}
            self.entries.add(identities[rows], new, told, about, name)

    def open(self) -> Features:
        """Returns the stored features, mapped. Raises: FileNotFoundError if some are not there."""
        if len(missing := self.missing()):
            raise FileNotFoundError(
                f"Image set {self.name}: the features of {len(missing):,} of {len(self.images):,} images are missing in "
                f"{self.entries.folder}, the first is {self.images.names[missing[0]]}; run again"
            )
        identities, _ = self._identities
        found = self.entries.rows(identities, [*self.arrays, "valid"])
        valid = found["valid"].take(torch.arange(len(identities)))
        inside = {
            kind: {name.removeprefix(f"{kind}."): rows for name, rows in found.items() if name.startswith(f"{kind}.")}
            for kind in ("layers", "tokens")
        }
        return Features(found.get("features"), found.get("embeddings"), valid, identities, **inside)

    def unreadable(self) -> list[tuple[str, str]]:
        """Returns the name of each image that was found unreadable, and why."""
        failures = self.entries.failures(self._identities[0])
        return [(self.images.names[row], failure.reason) for row, failure in failures.items()]


def made_with(batch_size: int | None) -> dict[str, Any]:
    """Returns what entries were made with: the versions of libraries and the number of images in a forward pass."""
    libraries = {name: version(name) for name in ("torch", "torchvision", "open_clip_torch", "timm")}
    return libraries if batch_size is None else libraries | {"batch_size": batch_size}
