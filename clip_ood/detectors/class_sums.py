"""Computes the mean of each class in one pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from clip_ood.detectors.exchange import Exchange
from clip_ood.detectors.statistic import Statistic
from clip_ood.outputs import Outputs

BLOCK = 2048  # rows that are summed at once, whose float64 values a cache holds


class ClassSums(Statistic):
    """Counts n_c (C,) and sums Σ_{i ∈ c} v_i (C, D) in float64; C grows with the classes that come.

    `values`: Outputs -> v (n, D); `classes`: Outputs -> (n,) int64, negative for rows that are not counted. Two
    statistics of the same two functions are the same.

    >>> sums = ClassSums(lambda rows: rows.features, lambda rows: rows.labels)
    >>> sums.update(Outputs(features=torch.tensor([[1.0], [3.0], [5.0]]), labels=torch.tensor([1, 1, -1])))
    >>> sums.means().tolist(), sums.counts.tolist()
    ([[0.0], [2.0]], [0.0, 2.0])
    """

    def __init__(self, values: Callable[[Outputs], Tensor], classes: Callable[[Outputs], Tensor]) -> None:
        super().__init__()
        self.values, self.classes = values, classes
        with torch.inference_mode(False):  # they change in place
            self.register_buffer("counts", torch.zeros(0, dtype=torch.float64))
            self.register_buffer("sums", torch.zeros(0, 0, dtype=torch.float64))

    def key(self) -> Hashable:
        return type(self), self.values, self.classes

    def means(self) -> Tensor:
        """Returns the mean of each class (C, D); it is zero for a class without rows."""
        return self.sums / self.counts.clamp_min(1)[:, None]

    def sum_states(self) -> list[Tensor]:
        """Returns the tensors that are summed over processes."""
        return [self.counts, self.sums]

    def _allocate(self, classes: int, width: int, device: torch.device | str) -> None:
        """Makes room for this many classes; `width` and `device` are used if no rows came before."""
        if not self.sums.shape[1]:
            self.counts, self.sums = self.counts.to(device), self.sums.new_zeros(0, width, device=device)
        if (more := classes - len(self.counts)) > 0:
            self.counts = torch.cat([self.counts, self.counts.new_zeros(more)])
            self.sums = torch.cat([self.sums, self.sums.new_zeros(more, width)])

    def _join(self, exchange: Exchange) -> None:
        classes, width = exchange.largest(torch.tensor(self.sums.shape, device=self.sums.device)).tolist()
        self._allocate(classes, width, self.sums.device)
        for state in self.sum_states():
            state.copy_(exchange.sum(state))

    def _update(self, rows: Outputs) -> None:
        values, classes = self.values(rows), self.classes(rows)
        classes = classes.to(values.device).long()
        if (classes < 0).any():
            values, classes = values[classes >= 0], classes[classes >= 0]
        for some, of in zip(values.split(BLOCK), classes.split(BLOCK), strict=True):
            self._add(some.double(), of)

    def _add(self, values: Tensor, classes: Tensor) -> None:
        most = int(classes.max()) + 1 if len(classes) else 0
        self._allocate(most, values.shape[1], values.device)
        self.counts += torch.bincount(classes, minlength=len(self.counts))
        self.sums.index_add_(0, classes, values)


def features(rows: Outputs) -> Tensor:
    """Returns features (n, D)."""
    return rows.features


def one_class(rows: Outputs) -> Tensor:
    """Assigns all rows to one class, so that the class mean is their overall mean."""
    return torch.zeros(len(rows), dtype=torch.int64)


def predicted(rows: Outputs) -> Tensor:
    """Returns the class with the largest logit (n,)."""
    return rows.logits.argmax(dim=1)
