"""One array of features, kept as the pieces in which it lies on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class Rows:
    """N rows of width D in mapped pieces; nothing is read before it is used.

    Args:
        chunks: (n_i, D) each, of one dtype.
        places: (N,) int64, the place of each row, counted through the pieces; None if they are all rows in order.
    """

    def __init__(self, chunks: Sequence[Tensor], places: Tensor | None = None) -> None:
        self.chunks, self.places = tuple(chunks), places
        self._ends = torch.tensor([len(chunk) for chunk in self.chunks]).cumsum(0)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.places is None else len(self.places)

    @property
    def width(self) -> int:
        return self.chunks[0].shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.chunks[0].dtype

    def spread(self, rows: Tensor, count: int) -> Rows:
        """Returns `count` rows of which those at `rows` (N,) are these; none of the others may be taken."""
        places = torch.full((count,), -1)
        places[rows] = torch.arange(len(self)) if self.places is None else self.places
        return Rows(self.chunks, places)

    def has(self, rows: Tensor) -> Tensor:
        """Says which of the rows at `rows` (n,) may be taken: (n,) bool."""
        return torch.ones(len(rows), dtype=torch.bool) if self.places is None else self.places[rows] >= 0

    def or_else(self, others: Rows) -> Rows:
        """Returns N rows of which those that are not here are the others', which are N as well."""
        own, theirs = (torch.arange(len(each)) if each.places is None else each.places for each in (self, others))
        end = int(self._ends[-1])
        return Rows([*self.chunks, *others.chunks], own.where((own >= 0) | (theirs < 0), theirs + end))

    def subset(self, rows: Tensor) -> Rows:
        """Returns the rows at `rows` (n,), in that order, without reading them."""
        return Rows(self.chunks, rows if self.places is None else self.places[rows])

    def take(self, indices: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """Returns the rows at `indices` (n,), in that order: (n, D) on `device`, copied once, one piece at a time.

        Raises: KeyError for rows that are not there.
        """
        out = torch.empty(len(indices), *self.chunks[0].shape[1:], dtype=self.dtype, device=device)
        places = indices if self.places is None else self.places[indices]
        if (places < 0).any():
            raise KeyError(f"{int((places < 0).sum())} of {len(places)} rows are not there")
        for wanted, rows in self._by_chunk(places):
            out[wanted.to(device)] = rows.to(device)
        return out

    def blocks(self, size: int = 8192) -> Iterator[Tensor]:
        """Yields all rows in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.take(torch.arange(start, min(start + size, len(self))))

    def _by_chunk(self, places: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        chunk_of = torch.searchsorted(self._ends, places, right=True)
        for chunk in chunk_of.unique().tolist():
            wanted = (chunk_of == chunk).nonzero().squeeze(1)
            start = int(self._ends[chunk]) - len(self.chunks[chunk])
            yield wanted, self.chunks[chunk][places[wanted] - start]
