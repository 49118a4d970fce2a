"""Rows and sums of all processes, exact for shares of unequal size. Without processes: what came in."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from clip_ood.detectors.detector import Detector


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


def join(detector: Detector, device: torch.device) -> None:
    """Makes a detector's state that of all processes together: sums are added, kept rows concatenated."""
    if not several():
        return
    if sizes := detector.sizes():
        joint = torch.tensor(sizes, device=device)
        dist.all_reduce(joint, dist.ReduceOp.MAX)
        detector.allocate(joint.tolist(), device)
    for state in detector.sum_states():
        dist.all_reduce(state)
    if kept := detector.rows():
        values, indices = (torch.cat(parts) for parts in zip(*kept, strict=True))
        detector.set_rows(zip(gather_rows(values), gather_rows(indices), strict=True))
