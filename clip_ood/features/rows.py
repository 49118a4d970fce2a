"""One array of features, kept as the chunks that it lies in on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """N rows of width D in equal chunks (the last may be shorter), mapped from files: nothing is read before it is used.

    Attributes: chunks, each (n, D) of one dtype.
    """

    chunks: tuple[Tensor, ...]

    def __len__(self) -> int:
        return sum(map(len, self.chunks))

    @property
    def width(self) -> int:
        return self.chunks[0].shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.chunks[0].dtype

    def take(self, indices: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """The rows at `indices` (n,), in that order: (n, D) on `device`, copied once, a chunk at a time."""
        out = torch.empty(len(indices), self.width, dtype=self.dtype, device=device)
        for places, rows in self._by_chunk(indices):
            out[places.to(device)] = rows.to(device)
        return out

    def _by_chunk(self, indices: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        chunk_of = indices // len(self.chunks[0])
        for chunk in chunk_of.unique().tolist():
            places = (chunk_of == chunk).nonzero().squeeze(1)
            yield places, self.chunks[chunk][indices[places] - chunk * len(self.chunks[0])]
