"""Exact nearest neighbours over a bank kept in chunks: query blocks x bank tiles with a running top k."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

QUERIES = 1024  # rows of one block of similarities
BANK = 8192  # its columns: 32 MiB in float32


def nearest(
    queries: Tensor, chunks: Sequence[Tensor], k: int, scales: Sequence[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The k bank rows with the largest inner product ⟨q, s b⟩, computed in float32.

    queries (N, D), chunks of the bank (n_i, D) and a scale of each row (n_i,) float32, 1 where there are none; for
    cosines, queries are L2-normalised, and so are the rows, or the scales are 1 / ‖b‖. Returns the products (N, k),
    descending, and positions (N, k) int64 in the concatenated bank. Beside the bank it takes memory for one block of
    products and a bank tile.
    Raises ValueError for k outside 1 … Σ n_i.
    """
    size = sum(len(chunk) for chunk in chunks)
    if not 1 <= k <= size:
        raise ValueError(f"nearest: k = {k}, expected 1 ≤ k ≤ {size}, the rows of the bank")
    device = chunks[0].device
    products = torch.empty(len(queries), k, device=device)
    positions = torch.empty(len(queries), k, dtype=torch.int64, device=device)
    for start in range(0, len(queries), QUERIES):
        block = slice(start, start + QUERIES)
        products[block], positions[block] = _block(queries[block].to(device, torch.float32), chunks, k, scales)
    return products, positions


def _block(queries: Tensor, chunks: Sequence[Tensor], k: int, scales: Sequence[Tensor] | None) -> tuple[Tensor, Tensor]:
    best = queries.new_empty(len(queries), 0)
    where = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for offset, tile, scale in _tiles(chunks, scales):
        products = queries @ tile.float().T  # (n, D) @ (D, m) -> (n, m)
        if scale is not None:
            products *= scale
        found, column = products.topk(min(k, len(tile)), dim=1)
        both = torch.cat([best, found], dim=1)
        best, order = both.topk(min(k, both.shape[1]), dim=1)
        where = torch.cat([where, column + offset], dim=1).gather(1, order)
    return best, where


def _tiles(chunks: Sequence[Tensor], scales: Sequence[Tensor] | None) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    offset = 0
    for number, chunk in enumerate(chunks):
        for start in range(0, len(chunk), BANK):
            part = slice(start, start + BANK)
            tile = chunk[part]
            yield offset, tile, None if scales is None else scales[number][part]
            offset += len(tile)
