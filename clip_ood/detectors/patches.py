"""Patch tokens of images: how many fit into memory at once, and a bank of patches of a few ID training images."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_ood.detectors.draws import hash_of
from clip_ood.detectors.exchange import Exchange
from clip_ood.detectors.statistic import Statistic
from clip_ood.errors import UserError
from clip_ood.outputs import Outputs

CELLS = 2**22  # cosines of patches that are held at once: 32 MiB in float64


def images_at_once(tokens: Tensor, columns: int) -> int:
    """Returns how many images with tokens (n, P, E) are worked on at once, if each patch is compared with `columns` others."""
    return CELLS // max(1, tokens.shape[1] * columns)


class PatchBank(Statistic):
    """The patch tokens (P, E) of `kind` of at most `images` ID training images: those with the smallest hash of their index and `seed`.

    Images without tokens are only counted. After `join`, the images are those of all processes together, and each process keeps its own.
    Raises: UserError for images with tokens whose index is not known.
    """

    def __init__(self, kind: str, images: int, seed: int) -> None:
        super().__init__()
        self.kind, self.images, self.seed = kind, images, seed
        self.seen = 0  # images, with tokens or without
        self._chunks: list[Tensor] = []  # (n_i, P, E) each
        self._indices: list[Tensor] = []
        self._bound: int | None = None  # images with a larger hash are not among those kept

    def key(self) -> Hashable:
        return type(self), self.kind, self.images, self.seed

    def draw(self, count: int) -> tuple[Tensor, Tensor, int]:
        """Draws at most `count` patches: (m, E) float32 of unit norm, the index of each one's image (m,), and how many images there are.

        They are those with the smallest hash of their image's index and their own number, in its order, and the same in all processes,
        which draw together. Raises: UserError if no image came with tokens.
        """
        images = int(self.exchange.sum(torch.tensor(sum(map(len, self._indices)), device=self._device)))
        if not images:
            raise UserError(f"{self.kind} tokens: no ID training image came with tokens of its patches")
        tokens, indices = torch.cat(self._chunks), torch.cat(self._indices)
        patches = tokens.shape[1]
        numbers = indices[:, None] * patches + torch.arange(patches, device=indices.device)  # (n, P)
        keys = hash_of(numbers.flatten(), self.seed + 1)
        mine = keys.argsort()[:count]
        rows = normalize(tokens.flatten(0, 1)[mine].float(), dim=1)
        gathered = (self.exchange.gather(each) for each in (keys[mine], rows, indices[mine // patches]))
        keys, rows, indices = (torch.cat(each) for each in gathered)
        order = keys.argsort()[:count]
        return rows[order], indices[order], images

    @property
    def _device(self) -> torch.device:
        return self._indices[0].device if self._indices else torch.device("cpu")

    def _update(self, rows: Outputs) -> None:
        self.seen += len(rows)
        if rows.tokens is None:
            return
        tokens = rows.tokens[self.kind]
        if rows.indices is None or (rows.indices < 0).any():
            raise UserError("a draw of images needs the indices of all, and some came without")
        indices = rows.indices.to(tokens.device)
        if self._bound is not None:
            near = hash_of(indices, self.seed) <= self._bound
            tokens, indices = tokens[near], indices[near]
        self._chunks.append(tokens)
        self._indices.append(indices)
        if sum(map(len, self._indices)) >= 2 * self.images:
            self._keep(self._smallest(torch.cat(self._indices)))

    def _smallest(self, indices: Tensor) -> int:
        """Returns the largest of the hashes of those images that are kept of some."""
        return int(hash_of(indices, self.seed).sort().values[: self.images][-1])

    def _keep(self, bound: int) -> None:
        tokens, indices = torch.cat(self._chunks), torch.cat(self._indices)
        near = hash_of(indices, self.seed) <= bound
        self._chunks, self._indices, self._bound = [tokens[near]], [indices[near]], bound

    def _join(self, exchange: Exchange) -> None:
        self.seen = int(exchange.sum(torch.tensor(self.seen, device=self._device)))
        own = torch.cat(self._indices) if self._indices else torch.empty(0, dtype=torch.long)
        everyone = torch.cat(exchange.gather(own))
        if len(everyone):
            self._keep(self._smallest(everyone))


def k_centres(rows: Tensor, count: int) -> Tensor:
    """Returns the places (m,) of `count` of some unit-norm rows (n, E), chosen greedily: the first row, then always the one whose
    largest cosine to those chosen is smallest (of equal ones the first). Sener and Savarese, 2018 (arXiv 1708.00489).

    >>> k_centres(torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), 2)
    tensor([0, 2])
    """
    chosen = [0]
    nearest = torch.full((len(rows),), -torch.inf, device=rows.device)  # (n,), the largest cosine to those chosen
    while len(chosen) < min(count, len(rows)):
        nearest = torch.maximum(nearest, rows @ rows[chosen[-1]])
        nearest[chosen[-1]] = torch.inf
        chosen.append(int(nearest.argmin()))
    return torch.tensor(chosen, device=rows.device)
