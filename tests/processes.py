"""Several processes of a detector's fit and scores, played by threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

from clip_ood.detectors.exchange import Exchange

T = TypeVar("T")


class Thread(Exchange):
    def __init__(self, rank: int, table: list, barrier: Barrier) -> None:
        self.rank, self.table, self.barrier = rank, table, barrier

    def gather(self, rows: Tensor) -> list[Tensor]:
        self.table[self.rank] = rows.clone()  # the others read it while this one goes on
        self.barrier.wait(timeout=30)
        gathered = list(self.table)
        self.barrier.wait(timeout=30)
        return gathered

    def sum(self, tensor: Tensor) -> Tensor:
        return torch.stack(self.gather(tensor)).sum(dim=0)

    def largest(self, tensor: Tensor) -> Tensor:
        return torch.stack(self.gather(tensor)).amax(dim=0)


def together(count: int, work: Callable[[Exchange], T]) -> list[T]:
    """work(exchange) of each of `count` processes, at the same time."""
    table, barrier = [None] * count, Barrier(count)

    def one(rank: int) -> T:
        try:
            return work(Thread(rank, table, barrier))
        except BaseException:
            barrier.abort()  # the others would wait
            raise

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))
