"""Draws training batches from tensors that already lie on the device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from clip_ood.threads import one_thread

SMALL = 1 << 20  # values of a batch, up to which one thread collects it


class DeviceBatches:
    """Shuffled (features (n, D), labels (n,), size of the global batch) of tensors on one device.

    Each rank gets its share of every global batch, n rows, which may be none. The order depends only on seed and epoch;
    the last batch of an epoch may be smaller.
    """

    def __init__(
        self, features: Tensor, labels: Tensor, batch_size: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self.features, self.labels = features, labels
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        order = torch.randperm(len(self.labels), generator=generator).to(self.labels.device)
        for rows in order.split(self.batch_size):
            mine = rows[self.rank :: self.world]
            with one_thread(len(mine) * self.features.shape[1:].numel() <= SMALL):
                batch = self.features[mine], self.labels[mine], len(rows)
            yield batch
