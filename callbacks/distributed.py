"""Rows and sums of all processes, exact for shares of unequal size. Without processes: what came in."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from clip_ood.detectors.statistic import Statistic


def several() -> bool:
    """Whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_rows(rows: Tensor) -> list[Tensor]:
    """(n_r, …) of every rank r, in the order of ranks; the shares may differ in n."""
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


def join(statistic: Statistic, device: torch.device) -> None:
    """Makes a statistic that of all processes together: sums are added, kept rows concatenated, a chunk at a time.

    Each process has taken in a batch before, if an empty one.
    """
    if not several():
        return
    if sizes := statistic.sizes():
        joint = torch.tensor(sizes, device=device)
        dist.all_reduce(joint, dist.ReduceOp.MAX)
        statistic.allocate(joint.tolist(), device)
    for state in statistic.sum_states():
        dist.all_reduce(state)
    if kept := statistic.rows():
        most = torch.tensor(len(kept), device=device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        nothing = tuple(part[:0] for part in kept[0])
        shares = kept + [nothing] * (int(most) - len(kept))
        statistic.set_rows(rows for share in shares for rows in zip(*map(gather_rows, share), strict=True))
