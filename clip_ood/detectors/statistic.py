"""Statistics of ID training images, which are computed once and shared by all detectors that need the same ones."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

from torch import nn

from clip_ood.detectors.exchange import ALONE, Exchange
from clip_ood.outputs import Outputs

T = TypeVar("T")


class Statistic(nn.Module):
    """Sums over ID training images, or rows kept of them, from any number of batches in any order.

    A subclass defines `key`, which is equal for statistics that are the same, `_update` (at most `ROWS` rows at a time, with the
    fields that the detector requires), and `_join`. With several processes, each takes in its own images (at least an empty
    batch), and all processes call `join` between the last `update` and the fit of detectors.
    """

    layer: str | None = None  # whose features it takes in; None stands for g

    def __init__(self) -> None:
        super().__init__()
        self.exchange = ALONE
        self._derived: dict[Hashable, Any] = {}

    def key(self) -> Hashable:
        """Identifies the statistic: statistics with equal keys hold the same after the same updates."""
        raise NotImplementedError

    def update(self, rows: Outputs) -> None:
        """Takes in some images."""
        self._derived.clear()
        self._update(rows)

    def join(self, exchange: Exchange) -> None:
        """Combines the statistics of all processes; it is called once, after the last update of each process."""
        self._derived.clear()
        self.exchange = exchange
        self._join(exchange)

    def once(self, what: Hashable, make: Callable[[], T]) -> T:
        """Returns make(), which is computed for the first detector that asks for `what` and kept until the next update."""
        if what not in self._derived:
            self._derived[what] = make()
        return self._derived[what]

    def _update(self, rows: Outputs) -> None:
        raise NotImplementedError

    def _join(self, exchange: Exchange) -> None:
        raise NotImplementedError


def statistics_of(detector: nn.Module) -> dict[str, Statistic]:
    """Returns the statistics that are attributes of a detector, by the attribute's name."""
    return {name: child for name, child in detector._modules.items() if isinstance(child, Statistic)}


def share(detectors: Iterable[nn.Module]) -> list[Statistic]:
    """Makes detectors share one statistic wherever theirs have equal keys, and returns each remaining statistic once."""
    shared: dict[Hashable, Statistic] = {}
    for detector in detectors:
        for name, own in statistics_of(detector).items():
            setattr(detector, name, shared.setdefault((own.layer, own.key()), own))
    return list(shared.values())
