"""The features of all ID training images, kept once, and searched once an image."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from clip_ood.detectors.exchange import Exchange
from clip_ood.detectors.neighbours import nearest
from clip_ood.detectors.statistic import Statistic
from clip_ood.errors import UserError
from clip_ood.outputs import Outputs


class Bank(Statistic):
    """Features as the chunks they came in, in their own dtype, with the rows of the image set (-1 where unknown).

    chunks: each (n, D); indices: each (n,) int64. Neither copied nor concatenated: that would hold the bank twice.
    Of several processes, each keeps what came to it; `len` counts the rows of all, and a search sees all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.chunks: list[Tensor] = []
        self.indices: list[Tensor] = []
        self.most = 1  # neighbours that any detector asks for
        self._elsewhere = 0
        self._last: tuple[Outputs, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return self._own + self._elsewhere

    def key(self) -> Hashable:
        return type(self)

    def expect(self, k: int) -> None:
        """Let searches find as many as k neighbours at once, since some detector will ask for them."""
        self.most = max(self.most, k)

    def nearest(self, rows: Outputs, k: int) -> tuple[Tensor, Tensor]:
        """The k bank rows of largest cosine to each image: cosines (n, k), descending, and their `indices` (n, k).

        A zero vector has cosine 0 to everything. The same `rows` are searched for once, whoever asks. Over several
        processes, all ask together, and each for its own rows: the search goes through every process's part of the
        bank, and the best of each part are merged. Raises ValueError for k outside 1 … len(bank).
        """
        if not 1 <= k <= len(self):
            raise UserError(f"nearest: k = {k}, expected 1 ≤ k ≤ {len(self)}, the rows of the bank")
        if self._last is None or self._last[0] is not rows or self._last[1].shape[1] < k:
            self._last = rows, *self._search(normalize(rows.features.float(), dim=1), max(k, self.most))
        _, cosines, indices = self._last
        return cosines[:, :k], indices[:, :k]

    def scales(self) -> list[Tensor]:
        """1 / ‖f_i‖ as chunks (n,) of float32: a product with f_i times its scale is one with f_i^."""
        return self.once("scales", lambda: [_inverse_norms(chunk) for chunk in self.chunks])

    def state(self) -> dict[str, Tensor]:
        """This process's part as tensors by name, nothing copied: what `restored` makes a bank of."""
        parts = {"features": self.chunks, "indices": self.indices}
        return {f"{name}.{number:06d}": chunk for name, chunks in parts.items() for number, chunk in enumerate(chunks)}

    @classmethod
    def restored(cls, parts: Iterable[Mapping[str, Tensor]]) -> Bank:
        """The bank whose parts, of one process or several, gave these states."""
        bank = cls()
        for part in parts:
            for kept, name in ((bank.chunks, "features."), (bank.indices, "indices.")):
                kept.extend(part[key] for key in sorted(part) if key.startswith(name))
        return bank

    def dense(self) -> Tensor:
        """All rows on the unit sphere as the columns of one matrix (D, N), float32: for graphs that search in one product.

        Raises ValueError where other processes hold a part.
        """
        if self._elsewhere:
            raise UserError(f"bank: other processes hold {self._elsewhere} of its rows; fit detectors in one process")
        return self.once("dense", self._columns)

    def draw(self, count: int, seed: int) -> Tensor:
        """`count` rows (count, D) in float64, the same ones in the same order however images came: those of the smallest
        hash of `seed` and index. All processes draw together. Raises ValueError for images without indices."""
        own = torch.cat(self.indices)
        if (own < 0).any():
            raise UserError("bank: a draw of images needs the indices of all, and some came without")
        keys = _hash(own, seed)
        last = torch.cat(self.exchange.gather(keys)).sort().values[count - 1]
        mine = (keys <= last).nonzero().squeeze(1)
        drawn, keys = (torch.cat(self.exchange.gather(part)) for part in (self._take(mine), keys[mine]))
        return drawn[keys.argsort()[:count]]

    def _columns(self) -> Tensor:
        columns = self.scales()[0].new_empty(self.chunks[0].shape[1], self._own)
        places = columns.split([len(chunk) for chunk in self.chunks], dim=1)
        for place, chunk, scale in zip(places, self.chunks, self.scales(), strict=True):
            place.copy_(chunk.T * scale)
        return columns

    def _take(self, positions: Tensor) -> Tensor:
        """The rows at `positions` (m,), ascending, of all chunks after each other: (m, D) float64."""
        ends = torch.tensor([0, *map(len, self.chunks)]).cumsum(0)
        parts = positions.tensor_split(torch.searchsorted(positions.cpu(), ends[1:-1]))
        return torch.cat([c[p - e].double() for c, p, e in zip(self.chunks, parts, ends.tolist(), strict=False)])

    def _search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        shares = self.exchange.gather(queries)
        everyone = torch.cat(shares)  # (Σ n, D), the images of all processes
        cosines, positions = nearest(everyone, self.chunks, min(k, self._own), self.scales())
        indices = self.once("indices", lambda: torch.cat(self.indices))[positions]
        missing = (0, k - cosines.shape[1])
        parts = self.exchange.gather(pad(cosines, missing, value=-torch.inf).T)  # each (k, Σ n)
        if len(parts) == 1:
            return cosines, indices
        before = sum(len(share) for share in shares[: self.exchange.rank])
        mine = slice(before, before + len(queries))
        ids = self.exchange.gather(pad(indices, missing, value=-1).T)
        cosines, order = torch.cat(parts)[:, mine].T.topk(k, dim=1)
        return cosines, torch.cat(ids)[:, mine].T.gather(1, order)

    @property
    def _own(self) -> int:
        return sum(map(len, self.chunks))

    def _update(self, rows: Outputs) -> None:
        indices = torch.full((len(rows),), -1) if rows.indices is None else rows.indices
        self.chunks.append(rows.features)
        self.indices.append(indices.to(rows.features.device))
        self._elsewhere, self._last = 0, None

    def _join(self, exchange: Exchange) -> None:
        self._elsewhere = int(exchange.sum(torch.tensor(self._own, device=self.chunks[0].device))) - self._own

    def _apply(self, fn: Any, recurse: bool = True) -> Bank:
        super()._apply(fn, recurse)
        self.chunks, self.indices = [fn(chunk) for chunk in self.chunks], [fn(chunk) for chunk in self.indices]
        self._derived.clear()
        self._last = None
        return self


def _inverse_norms(features: Tensor) -> Tensor:
    """1 / ‖f_i‖ (n,) of features (n, D); large and finite for a zero vector."""
    return features.double().norm(dim=1).clamp_min(1e-12).reciprocal().float()


def _hash(indices: Tensor, seed: int) -> Tensor:
    """A number for each index (n,), different ones for different indices (SplitMix64, Steele et al. 2014)."""
    x = indices + _signed((seed + 1) * 0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * _signed(factor)
    return x


def _signed(value: int) -> int:
    value %= 1 << 64
    return value - (1 << 64) if value >> 63 else value
