"""One file of the feature store: named arrays of some entries, written whole or not at all, with a checksum at its end.

It is a safetensors file. `first` and `second` (n,) are the halves of the entries' identities in ascending order of `first`,
and `order` (n,) says to which row each belongs. Then come the arrays, with a row for each entry. The last 16 bytes are
`checksum`, the BLAKE2b hash of all bytes before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clip_ood.errors import UserError
from clip_ood.features.identity import find
from clip_ood.files.records import Record, Unfit, fitting
from clip_ood.files.regular_file import check_regular
from clip_ood.files.tensor_files import blocks
from clip_ood.files.unreadable import check_of_file
from clip_ood.files.writing import written_whole

SUFFIX = ".safetensors"
CHECKSUM = 16  # bytes


class StoreError(UserError):
    """The store holds something that is damaged or unexpected, or it cannot be written."""


class Failure(NamedTuple):
    """The reason why an entry could not be made, and what tried to make it: another version of that may succeed."""

    reason: str
    tried: str


@dataclass(frozen=True)
class Segment:
    """A mapped file; nothing of an array is read before it is used.

    Attributes: first, second: the halves of the identities (n,) uint64, ascending; order: (n,), their rows; arrays: by name,
    (n, …) each; about: what was written about them: errors, a Failure by row.
    """

    path: Path
    first: np.ndarray
    second: np.ndarray
    order: np.ndarray
    arrays: dict[str, Tensor]
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.first)

    @property
    def kind(self) -> tuple:
        """The names, dtypes and shapes of the arrays, which segments must share to be merged."""
        return tuple((name, array.dtype, *array.shape[1:]) for name, array in sorted(self.arrays.items()))

    @property
    def identities(self) -> np.ndarray:
        """The identities (n, 2) uint64, in the order of the rows."""
        pairs = np.empty((len(self), 2), np.uint64)
        pairs[self.order] = np.stack([self.first, self.second], axis=1)
        return pairs

    def rows_of(self, identities: np.ndarray) -> np.ndarray:
        """Returns the row of each identity (m, 2), or -1 if it is not here."""
        places = find(self.first, self.second, identities)
        return np.where(places < 0, -1, self.order[places] if len(self) else -1)


class About(Record):
    """What a segment holds besides its arrays: by row, why entries could not be made, and what made the others."""

    errors: dict[Annotated[str, Field(pattern=r"^\d{1,18}$")], str | list[str]]
    made_with: list[dict[str, Any]]


def open_segment(path: Path) -> Segment:
    """Maps a file.

    Raises: StoreError if it is too damaged to be mapped, FileNotFoundError, OSError if no more files can be opened.
    """
    try:
        check_regular(path)
        path.open("rb").close()  # safetensors would report a file without read permission as missing
    except FileNotFoundError:
        raise
    except OSError as error:
        check_of_file(error)
        raise StoreError(f"{path} cannot be read ({error.strerror})") from error
    try:
        with safe_open(path, "pt") as file:
            about = fitting(json.loads(file.metadata()["about"]), About)
            about["errors"] = {row: _failure(written) for row, written in about["errors"].items()}
            tensors = {key: file.get_tensor(key) for key in file.keys() if key != "checksum"}  # noqa: SIM118
        halves = [tensors.pop(key) for key in ("first", "second", "order")]
        if any(half.dtype != torch.int64 or half.ndim != 1 for half in halves):
            raise Unfit("its identities are none")
        if any(not array.ndim or len(array) != len(halves[0]) for array in [*halves, *tensors.values()]):
            raise Unfit("its arrays have not one row an entry")
        halves = [half.numpy() for half in halves]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        if not path.is_file():  # it was removed in between
            raise FileNotFoundError(f"There is no segment {path} any more") from error
        raise StoreError(f"{path} is damaged ({error})") from error
    return Segment(path, halves[0].view(np.uint64), halves[1].view(np.uint64), halves[2], tensors, about)


def _failure(written: str | list[str]) -> Failure:
    """Reads why an entry could not be made; an older version wrote the reason alone, as a text."""
    return Failure(written, "") if isinstance(written, str) else Failure(*written)


def is_whole(path: Path) -> bool:
    """Says whether the bytes of a file are those that were written."""
    digest = hashlib.blake2b(digest_size=CHECKSUM)
    left = path.stat().st_size - CHECKSUM
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(left, 1 << 24))):
            digest.update(block)
            left -= len(block)
        return left == 0 and file.read() == digest.digest()


def write_segment(
    path: Path, identities: np.ndarray, arrays: Mapping[str, Sequence[Tensor]], about: Mapping[str, Any]
) -> None:
    """Writes a file of n entries with identities (n, 2); each array comes in pieces, which are written one after another.

    Raises: OSError if it cannot be written; then nothing is left of it.
    """
    order = np.argsort(identities[:, 0], kind="stable")
    ours = {
        "first": [torch.from_numpy(identities[order, 0].copy().view(np.int64))],
        "second": [torch.from_numpy(identities[order, 1].copy().view(np.int64))],
        "order": [torch.from_numpy(order.astype(np.int64))],
    }
    with written_whole(path) as file:
        digest = hashlib.blake2b(digest_size=CHECKSUM)
        for block in blocks(ours | dict(arrays), {"about": json.dumps(about)}, CHECKSUM):
            file.write(block)
            digest.update(block)
        file.write(digest.digest())
