"""The features of all ID training images, kept once."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import Tensor

from clip_ood.detectors.statistic import Statistic
from clip_ood.outputs import Outputs


class Bank(Statistic):
    """Features as the chunks they came in, in their own dtype, with the rows of the image set (-1 where unknown).

    chunks: each (n, D); indices: each (n,) int64. Neither copied nor concatenated: that would hold the bank twice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.chunks: list[Tensor] = []
        self.indices: list[Tensor] = []

    def __len__(self) -> int:
        return sum(map(len, self.chunks))

    def key(self) -> Hashable:
        return type(self)

    def scales(self) -> list[Tensor]:
        """1 / ‖f_i‖ as chunks (n,) of float32: a product with f_i times its scale is one with f_i^."""
        return self.once("scales", lambda: [_inverse_norms(chunk) for chunk in self.chunks])

    def take(self, positions: Tensor) -> Tensor:
        """The rows at `positions` (m,), on the CPU, of all chunks after each other: (m, D) float64."""
        sizes = torch.tensor([len(chunk) for chunk in self.chunks])
        ends = sizes.cumsum(0)
        chunk_of = torch.searchsorted(ends, positions, right=True)
        offsets = positions - (ends - sizes)[chunk_of]
        taken = self.chunks[0].new_empty(len(positions), self.chunks[0].shape[1], dtype=torch.float64)
        for number in chunk_of.unique().tolist():
            places = (chunk_of == number).nonzero().squeeze(1)
            chunk = self.chunks[number]
            taken[places.to(chunk.device)] = chunk[offsets[places].to(chunk.device)].double()
        return taken

    def rows(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.chunks, self.indices, strict=True))

    def set_rows(self, rows: Iterable[tuple[Tensor, Tensor]]) -> None:
        kept = list(rows)
        self.chunks, self.indices = [values for values, _ in kept], [indices for _, indices in kept]
        self._derived.clear()

    def _apply(self, fn: Any, recurse: bool = True) -> Bank:
        super()._apply(fn, recurse)
        self.set_rows([(fn(values), fn(indices)) for values, indices in self.rows()])
        return self

    def _update(self, rows: Outputs) -> None:
        indices = torch.full((len(rows),), -1) if rows.indices is None else rows.indices
        self.chunks.append(rows.features)
        self.indices.append(indices.to(rows.features.device))


def _inverse_norms(features: Tensor) -> Tensor:
    """1 / ‖f_i‖ (n,) of features (n, D); large and finite for a zero vector."""
    return features.double().norm(dim=1).clamp_min(1e-12).reciprocal().float()
