"""What detectors keep of ID training images: taken in once, shared by all detectors that ask for the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

from torch import nn

from clip_ood.detectors.exchange import ALONE, Exchange
from clip_ood.outputs import Outputs

T = TypeVar("T")


class Statistic(nn.Module):
    """Sums over ID training images, or rows kept of them, from any number of batches in any order.

    A subclass gives `key`, equal for statistics that are the same, `_update` (at most `ROWS` rows at a time, of the
    fields that the detector requires), and `_join`. Over several processes, each takes in its own images (an empty
    batch at least), and all `join` between the last `update` and the fit of detectors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.exchange = ALONE
        self._derived: dict[Hashable, Any] = {}

    def key(self) -> Hashable:
        """What is taken in: statistics of equal keys hold the same after the same updates."""
        raise NotImplementedError

    def update(self, rows: Outputs) -> None:
        """Take in some images."""
        self._derived.clear()
        self._update(rows)

    def join(self, exchange: Exchange) -> None:
        """Make it that of all processes together; once, after the last update of each."""
        self._derived.clear()
        self.exchange = exchange
        self._join(exchange)

    def once(self, what: Hashable, make: Callable[[], T]) -> T:
        """make(), computed for the first detector that asks for `what`, kept for the others until the next update."""
        if what not in self._derived:
            self._derived[what] = make()
        return self._derived[what]

    def _update(self, rows: Outputs) -> None:
        raise NotImplementedError

    def _join(self, exchange: Exchange) -> None:
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
