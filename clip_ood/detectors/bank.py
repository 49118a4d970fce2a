"""The bank keeps the features of all ID training images once, and is searched once for each image."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from clip_ood.detectors.detector import ROWS
from clip_ood.detectors.draws import hash_of
from clip_ood.detectors.exchange import Exchange
from clip_ood.detectors.neighbours import nearest
from clip_ood.detectors.statistic import Statistic
from clip_ood.errors import UserError
from clip_ood.outputs import Outputs

Found = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # queries (n, D) and k -> cosines (n, k) and positions (n, k)


class Bank(Statistic):
    """Features in the chunks and the dtype in which they came, with their rows in the image set (-1 where unknown).

    chunks: each (n, D); indices: each (n,) int64. They are neither copied nor concatenated, which would need the memory twice.
    With several processes, each keeps the features that it was given; `len` counts the rows of all processes, and a search
    covers all of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.chunks: list[Tensor] = []
        self.indices: list[Tensor] = []
        self.most = 1  # neighbours that any detector asks for
        self._elsewhere = 0
        self._itself = False  # whether its images came with `copy_of`
        self._last: tuple[Outputs, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return self._own + self._elsewhere

    def key(self) -> Hashable:
        return type(self)

    def expect(self, k: int) -> None:
        """Lets searches find as many as k neighbours at once, because some detector will ask for them."""
        self.most = max(self.most, k)

    def check(self, detector: str, k: int, itself: bool = False) -> None:
        """Raises ValueError if an image does not have k neighbours here, or with `itself` an image of the bank k others."""
        if k > len(self):
            raise UserError(f"{detector}: k = {k}, but the bank has {len(self)} rows; expected k of at most that")
        if (itself or self._itself) and k == len(self):
            raise UserError(f"{detector}: {_too_few(k, len(self) - 1)}")

    def nearest(self, rows: Outputs, k: int) -> tuple[Tensor, Tensor]:
        """Returns the k bank rows with the largest cosine to each image: cosines (n, k), descending, and their `indices` (n, k).

        A zero vector has cosine 0 to everything. Where `rows.copy_of` names a bank row, that row is left out, so that no image is
        its own neighbour, nor that of its copy. The same `rows` are searched for only once, whichever detector asks. With
        several processes, all must ask together, each for its own rows: the search goes through every process's part of the bank,
        and the best of each part are merged. Raises ValueError for k outside 1 … len(bank), or … len(bank) − 1 if a row is left out.
        """
        if not 1 <= k <= len(self):
            raise UserError(f"nearest: k = {k}, expected 1 ≤ k ≤ {len(self)}, the rows of the bank")
        if self._last is None or self._last[0] is not rows or self._last[1].shape[1] < k:
            self._last = rows, *self._others(rows, max(k, self.most))
        _, cosines, indices = self._last
        if k > cosines.shape[1]:
            raise UserError(f"nearest: {_too_few(k, len(self) - 1)}")
        return cosines[:, :k], indices[:, :k]

    def itself(self) -> Iterator[Outputs]:
        """Yields this process's rows as images that are to be searched for, each named as its own copy, at most `ROWS` at a time.

        All processes are given equally many parts, of which the last may be empty. Raises ValueError for images without indices.
        """
        own = torch.cat(self.indices)
        if self.exchange.sum((own < 0).sum()):
            raise UserError("bank: to leave out an image itself takes the indices of all, and some came without")
        parts = self.exchange.largest(torch.tensor(-(-len(own) // ROWS), device=own.device))
        for positions in (
            torch.arange(len(own), device=own.device)[ROWS * part :][:ROWS] for part in range(int(parts))
        ):
            yield Outputs(features=self._take(positions), indices=own[positions], copy_of=own[positions])

    def scales(self) -> list[Tensor]:
        """Returns 1 / ‖f_i‖ as chunks (n,) of float32: a product with f_i times its scale is a product with f_i^."""
        return self.once("scales", lambda: [_inverse_norms(chunk) for chunk in self.chunks])

    def state(self) -> dict[str, Tensor]:
        """Returns this process's part as tensors by name, without copying; `restored` makes a bank of such parts."""
        parts = {"features": self.chunks, "indices": self.indices}
        return {f"{name}.{number:06d}": chunk for name, chunks in parts.items() for number, chunk in enumerate(chunks)}

    @classmethod
    def restored(cls, parts: Iterable[Mapping[str, Tensor]]) -> Bank:
        """Makes a bank of its parts' states, whether they come from one process or from several."""
        bank = cls()
        for part in parts:
            for kept, name in ((bank.chunks, "features."), (bank.indices, "indices.")):
                kept.extend(part[key] for key in sorted(part) if key.startswith(name))
        return bank

    def dense(self) -> Tensor:
        """Returns all rows on the unit sphere as the columns of one matrix (D, N), float32.

        It serves graphs that search by one product. Raises ValueError if other processes hold a part.
        """
        if self._elsewhere:
            raise UserError(f"bank: other processes hold {self._elsewhere} of its rows; fit detectors in one process")
        return self.once("dense", self._columns)

    def draw(self, count: int, seed: int) -> Tensor:
        """Draws `count` rows (count, D) in float64: those with the smallest hash of `seed` and index.

        They are the same rows in the same order, in whatever order images came. All processes must draw together. Raises
        ValueError for images without indices.
        """
        own = torch.cat(self.indices)
        if (own < 0).any():
            raise UserError("bank: a draw of images needs the indices of all, and some came without")
        keys = hash_of(own, seed)
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
        """Returns the rows (m, D), float64, at ascending `positions` (m,), counted through all chunks."""
        ends = torch.tensor([0, *map(len, self.chunks)]).cumsum(0)
        parts = positions.tensor_split(torch.searchsorted(positions.cpu(), ends[1:-1]))
        return torch.cat([c[p - e].double() for c, p, e in zip(self.chunks, parts, ends.tolist(), strict=False)])

    def _others(self, rows: Outputs, k: int) -> tuple[Tensor, Tensor]:
        """Returns what `nearest` does, for k − 1 neighbours where no more are left."""
        queries = normalize(rows.features.float(), dim=1)
        k = min(k, len(self))
        if rows.copy_of is None:
            return self._search(queries, k)
        cosines, indices = self._search(queries, min(k + 1, len(self)))
        copies = rows.copy_of.to(indices)[:, None]
        own = (indices == copies) & (copies >= 0)
        if k == len(self) and not self.exchange.sum(own.sum()):
            return cosines, indices
        wanted = cosines.shape[1] - 1
        columns = (
            torch.arange(wanted, device=own.device) + own.cumsum(dim=1)[:, :wanted]
        )  # one further from the copy on
        return cosines.gather(1, columns), indices.gather(1, columns)

    def _search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return self._merged(self._found, queries, k)

    def _merged(self, found: Found, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Returns cosines (n, k), descending, and indices (n, k) of the best rows that each process has `found` of its own."""
        shares = self.exchange.gather(queries)
        everyone = torch.cat(shares)  # (Σ n, D), the images of all processes
        cosines, positions = found(everyone, min(k, self._own))
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

    def _found(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Returns cosines (n, k), descending, and positions (n, k) of this process's rows."""
        return nearest(queries, self.chunks, k, self.scales())

    @property
    def _own(self) -> int:
        return sum(map(len, self.chunks))

    def _update(self, rows: Outputs) -> None:
        indices = torch.full((len(rows),), -1) if rows.indices is None else rows.indices
        self.chunks.append(rows.features)
        self.indices.append(indices.to(rows.features.device))
        self._elsewhere, self._last = 0, None
        self._itself |= rows.copy_of is not None

    def _join(self, exchange: Exchange) -> None:
        self._elsewhere = int(exchange.sum(torch.tensor(self._own, device=self.chunks[0].device))) - self._own
        self._itself = bool(exchange.largest(torch.tensor(int(self._itself), device=self.chunks[0].device)))

    def _apply(self, fn: Any, recurse: bool = True) -> Bank:
        super()._apply(fn, recurse)
        self.chunks, self.indices = [fn(chunk) for chunk in self.chunks], [fn(chunk) for chunk in self.indices]
        self._derived.clear()
        self._last = None
        return self


def _too_few(k: int, others: int) -> str:
    return f"k = {k}, but an image of the bank has {others} others there; expected k of at most that"


def _inverse_norms(features: Tensor) -> Tensor:
    """Returns 1 / ‖f_i‖ (n,) of features (n, D); it is large and finite for a zero vector."""
    return features.double().norm(dim=1).clamp_min(1e-12).reciprocal().float()
