"""Gathers rows and sums of all processes, exactly for shares of unequal size. With a single process, it returns its input."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from clip_ood.detectors.exchange import ALONE, Exchange


def several() -> bool:
    """Says whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_rows(rows: Tensor) -> list[Tensor]:
    """Returns rows (n_r, …) of every rank r, in the order of ranks; the shares may differ in n."""
    if not several():
        return [rows]
    counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = int(max(counts))
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: len(rows)] = rows
    shares = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(shares, padded)
    return [share[: int(count)] for share, count in zip(shares, counts, strict=True)]


class Processes(Exchange):
    """The exchange of Lightning's processes."""

    @property
    def rank(self) -> int:
        return dist.get_rank()

    def sum(self, tensor: Tensor) -> Tensor:
        return _reduced(tensor, dist.ReduceOp.SUM)

    def largest(self, tensor: Tensor) -> Tensor:
        return _reduced(tensor, dist.ReduceOp.MAX)

    def gather(self, rows: Tensor) -> list[Tensor]:
        return gather_rows(rows)


def exchange() -> Exchange:
    """Returns how this process communicates with the others, if there are any."""
    return Processes() if several() else ALONE


def _reduced(tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    reduced = tensor.clone()
    dist.all_reduce(reduced, operation)
    return reduced
