"""Exact nearest neighbours in a bank kept in chunks: blocks of queries are compared with tiles of the bank, with a running top k.

Where the hardware multiplies half-precision matrices faster, the search runs in half precision, takes more neighbours
than were asked for, and computes their products again in float32. The rounding errors are bounded, so it is known of
every query whether a row that was not taken could be among the k best; such queries are searched again in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from clip_ood.errors import UserError
from clip_ood.threads import check_wanted, side_by_side

QUERIES = 1024  # rows of one block of products
BANK = 4096  # its columns: 16 MiB in float32, which a CPU's caches hold better than more
ON_GPU = 4096, 8192  # rows and columns there, where starting an operation is what takes long
PAIRS = 1024  # products computed again at once, whose rows a CPU's caches hold
PAIRS_ON_GPU = 16384
MANY = 64  # fewest bank rows for each one that is computed again; with fewer, that takes longer than the products
TOGETHER = 16  # columns of a tile of which the largest product is compared first
FEW = 256  # with fewer queries, converting the bank takes longer than the products


def nearest(
    queries: Tensor, chunks: Sequence[Tensor], k: int, scales: Sequence[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Returns the k bank rows with the largest inner product ⟨q, s b⟩, as float32 gives them.

    queries: (N, D); chunks of the bank: (n_i, D); scales: one for each row (n_i,) float32, or 1 for all if there are none. For
    cosines, queries are L2-normalised, and either the rows are too or the scales are 1 / ‖b‖. Returns the products (N, k),
    descending, and positions (N, k) int64 in the concatenated bank. Besides the bank, this needs memory for one block of
    products and one tile of the bank, on a CPU for each thread. Raises ValueError for k outside 0 … Σ n_i.
    """
    size = sum(len(chunk) for chunk in chunks)
    if not 0 <= k <= size:
        raise UserError(f"nearest: k = {k}, expected 0 ≤ k ≤ {size}, the rows of the bank")
    device = chunks[0].device
    if queries.requires_grad:  # the gradient passes through the neighbours alone
        _, positions = nearest(queries.detach(), chunks, k, scales)
        return products_with(queries.to(device, torch.float32), chunks, scales, positions), positions
    products = torch.empty(len(queries), k, device=device)
    positions = torch.empty(len(queries), k, dtype=torch.int64, device=device)
    low = low_precision(device.type) if k and size > MANY * taken(k) and len(queries) >= FEW else None
    limits = None if low is None else _limits(chunks, scales, low)

    def search(block: slice) -> None:
        rows = queries[block].to(device, torch.float32)
        if low is None or len(rows) < FEW:
            products[block], positions[block] = _sweep(rows, chunks, scales, k, torch.float32)
            return
        products[block], positions[block], unsure = _reranked(rows, chunks, scales, k, low, limits)
        if len(unsure):
            again = block.start + unsure
            products[again], positions[again] = _sweep(rows[unsure], chunks, scales, k, torch.float32)

    blocks = _blocks(len(queries) if k else 0, device.type)
    if device.type == "cpu":
        side_by_side(search, blocks)
    else:
        for block in blocks:
            search(block)
    return products, positions


def _blocks(count: int, device: str) -> list[slice]:
    """Divides `count` queries into blocks; on a CPU into equal ones, of which every thread gets as many as the others."""
    if device != "cpu":
        return [slice(start, start + ON_GPU[0]) for start in range(0, count, ON_GPU[0])]
    threads = torch.get_num_threads()
    blocks = max(1, min(threads * -(-count // (threads * QUERIES)), count // FEW))
    size = max(1, -(-count // blocks))
    return [slice(start, start + size) for start in range(0, count, size)]


def largest_products(queries: Tensor, columns: Tensor, k: int) -> Tensor:
    """Returns the products (N, k), descending, that `nearest` finds, by one matrix product of queries (N, D) and bank (D, M).

    It serves exported graphs.
    """
    return (queries @ columns).topk(k, dim=1).values


def low_precision(device: str) -> torch.dtype | None:
    """Returns the half precision in which this kind of device multiplies matrices faster than in float32, or None.

    It is float16 on a GPU with tensor cores, and bfloat16 on a CPU with instructions for it (AVX512-BF16, AMX).
    """
    if device == "cuda":
        return torch.float16 if torch.cuda.get_device_capability() >= (7, 0) else None
    if device == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return torch.bfloat16
    return None


def _reranked(
    queries: Tensor,
    chunks: Sequence[Tensor],
    scales: Sequence[Tensor] | None,
    k: int,
    dtype: torch.dtype,
    limits: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns products (n, k) in float32, positions (n, k), and the queries (m,) that may have missed a neighbour.

    If a row was not taken, its product in low precision is at most the last one taken, a. Its product in float32 is then
    at most a + ‖q − q~‖ max ‖b‖ + ‖q~‖ max ‖b − b~‖ (Cauchy-Schwarz, ~ rounded; `limits` are the two maxima), + |a| u for
    the rounded result, and the rounding of sums.
    """
    longest, rounding = limits
    rough, positions = _sweep(queries, chunks, scales, taken(k), dtype)
    exact = products_with(queries, chunks, scales, positions)
    products, order = exact.topk(k, dim=1)
    rounded = queries.to(dtype).float()
    last, unit = rough[:, -1].float(), torch.finfo(dtype).eps / 2
    error = (queries - rounded).norm(dim=1) * longest + rounded.norm(dim=1) * (rounding + longest * _summing(queries))
    unsure = last + last.abs() * unit + error > products[:, -1]
    return products, positions.gather(1, order), unsure.nonzero().squeeze(1)


def taken(k: int) -> int:
    """Returns how many neighbours are taken in low precision, among which the k best are sought."""
    return k + k // 4 + 32


def _summing(queries: Tensor) -> float:
    return 2 * queries.shape[1] * torch.finfo(torch.float32).eps


def _sweep(
    queries: Tensor, chunks: Sequence[Tensor], scales: Sequence[Tensor] | None, k: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Returns the best k of all tiles in `dtype`, and their positions."""
    rounded = queries.to(dtype)
    best = rounded.new_empty(len(queries), 0)
    where = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for offset, tile in _tiles(chunks, scales):
        products = rounded @ tile.to(dtype).T  # (n, D) @ (D, m) -> (n, m)
        if best.shape[1] == k and products.device.type == "cpu":
            _insert(best, where, products, offset)
        else:
            found, column = products.max(1, keepdim=True) if k == 1 else products.topk(min(k, len(tile)), dim=1)
            both = torch.cat([best, found], dim=1)
            best, order = both.topk(min(k, both.shape[1]), dim=1)
            where = torch.cat([where, column + offset], dim=1).gather(1, order)
    return best, where


def _limits(chunks: Sequence[Tensor], scales: Sequence[Tensor] | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns the largest length ‖b‖ and rounding ‖b − b~‖ of a bank row in `dtype`."""
    longest, rounding = torch.zeros(2, device=chunks[0].device)
    for _, tile in _tiles(chunks, scales):
        longest = torch.maximum(longest, tile.norm(dim=1).amax())
        rounding = torch.maximum(rounding, (tile - tile.to(dtype)).norm(dim=1).amax())
    return longest, rounding


def _insert(best: Tensor, where: Tensor, products: Tensor, offset: int) -> None:
    """Changes the best k so far (n, k), descending, and their positions to those of them and a tile's products (n, m) together.

    Columns are looked at by the largest of each `TOGETHER`, nearly all of which lie below the k-th best so far.
    """
    count = products.shape[1] // TOGETHER
    groups = products[:, : TOGETHER * count].unflatten(1, (TOGETHER, count))  # a column belongs with those `count` away
    rest = products[:, TOGETHER * count :]
    least = best[:, -1:]
    higher = groups.amax(dim=1) > least  # (n, count)
    hits = higher.sum(dim=1)
    rows = ((hits > 0) | (rest > least).any(dim=1)).nonzero().squeeze(1)
    if not len(rows):
        return
    hits = hits[rows]
    row, group = higher[rows].nonzero().unbind(1)  # by row
    slot = torch.arange(len(row), device=row.device) - (hits.cumsum(0) - hits)[row]
    size = (len(rows), int(hits.max()))
    values = products.new_full((*size, TOGETHER), -torch.inf)
    values[row, slot] = groups[rows[row], :, group]
    columns = group.new_zeros(size).index_put((row, slot), group)
    places = columns[:, None] + count * torch.arange(TOGETHER, device=row.device)[:, None]
    last = torch.arange(TOGETHER * count, products.shape[1], device=row.device).expand(len(rows), -1)
    values = torch.cat([best[rows], values.mT.flatten(1), rest[rows]], dim=1)
    places = torch.cat([where[rows], offset + places.flatten(1), offset + last], dim=1)
    best[rows], order = values.topk(best.shape[1], dim=1)
    where[rows] = places.gather(1, order)


def products_with(
    queries: Tensor, chunks: Sequence[Tensor], scales: Sequence[Tensor] | None, positions: Tensor
) -> Tensor:
    """Returns ⟨q, s b⟩ (n, m) in float32 of each query with the bank rows at its `positions` (n, m)."""
    sorted_, order = positions.flatten().sort()
    ends = torch.tensor([0, *map(len, chunks)], device=positions.device).cumsum(0)
    bounds = torch.searchsorted(sorted_, ends).tolist()
    products = queries.new_empty(positions.numel())
    size = PAIRS if positions.device.type == "cpu" else PAIRS_ON_GPU
    for number, chunk in enumerate(chunks):
        for start in range(bounds[number], bounds[number + 1], size):
            pairs = slice(start, min(start + size, bounds[number + 1]))
            rows, of = sorted_[pairs] - ends[number], order[pairs]
            found = (chunk[rows].float() * queries[of // positions.shape[1]]).sum(dim=1)
            products[of] = found if scales is None else found * scales[number][rows]
    return products.view_as(positions)


def _tiles(chunks: Sequence[Tensor], scales: Sequence[Tensor] | None) -> Iterator[tuple[int, Tensor]]:
    """Yields bank rows times their scales in float32, and the position of the first row."""
    offset = 0
    for number, chunk in enumerate(chunks):
        size = BANK if chunk.device.type == "cpu" else ON_GPU[1]
        for start in range(0, len(chunk), size):
            check_wanted()
            tile = chunk[start : start + size].float()
            yield offset, tile if scales is None else tile * scales[number][start : start + size, None]
            offset += len(tile)
