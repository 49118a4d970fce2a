"""What detectors keep of ID training images: taken in once, shared by all detectors that ask for the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from clip_ood.outputs import Outputs

T = TypeVar("T")


class Statistic(nn.Module):
    """Sums over ID training images, or rows kept of them, from any number of batches in any order.

    A subclass gives `key`, equal for statistics that are the same, `_update` (at most `ROWS` rows at a time, of the
    fields that the detector requires), and one of two kinds of state. Sums: `sizes`, `allocate` and `sum_states`.
    Rows: `rows` and `set_rows`.

    Over several processes, between the last `update` and the fit of detectors: `allocate` with the largest `sizes` of
    all processes, then sum each tensor of `sum_states` in place, and give `set_rows` the `rows` of all processes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._derived: dict[Hashable, Any] = {}

    def key(self) -> Hashable:
        """What is taken in: statistics of equal keys hold the same after the same updates."""
        raise NotImplementedError

    def update(self, rows: Outputs) -> None:
        """Take in some images."""
        self._derived.clear()
        self._update(rows)

    def once(self, what: Hashable, make: Callable[[], T]) -> T:
        """make(), computed for the first detector that asks for `what`, kept for the others until the next update."""
        if what not in self._derived:
            self._derived[what] = make()
        return self._derived[what]

    def sizes(self) -> tuple[int, ...]:
        """Sizes of the sums, () where there are none."""
        return ()

    def allocate(self, sizes: Sequence[int], device: torch.device | str = "cpu") -> None:
        """Widen the sums to `sizes` with zeros; `device` counts where nothing was taken in yet."""

    def sum_states(self) -> list[Tensor]:
        """Tensors that add over processes, to be changed in place."""
        return []

    def rows(self) -> list[tuple[Tensor, Tensor]]:
        """Kept rows as chunks (values (n, D), image-set rows (n,)), to be concatenated over processes."""
        return []

    def set_rows(self, rows: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Replace the kept rows."""

    def _update(self, rows: Outputs) -> None:
        raise NotImplementedError


def statistics_of(detector: nn.Module) -> dict[str, Statistic]:
    """The statistics that are attributes of a detector, by the attribute's name."""
    return {name: child for name, child in detector._modules.items() if isinstance(child, Statistic)}


def share(detectors: Iterable[nn.Module]) -> list[Statistic]:
    """Make detectors read one statistic wherever theirs have equal keys. Returns each statistic that is left, once."""
    shared: dict[Hashable, Statistic] = {}
    for detector in detectors:
        for name, own in statistics_of(detector).items():
            setattr(detector, name, shared.setdefault(own.key(), own))
    return list(shared.values())
