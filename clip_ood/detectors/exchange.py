"""What processes tell each other while detectors are fitted and while a divided bank is searched."""

from __future__ import annotations

from torch import Tensor


class Exchange:
    """One process on its own; several override every method. All processes call them together, in the same order."""

    rank = 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over processes of a tensor that has the same shape in each."""
        return tensor

    def largest(self, tensor: Tensor) -> Tensor:
        """The elementwise maximum over processes of a tensor that has the same shape in each."""
        return tensor

    def gather(self, rows: Tensor) -> list[Tensor]:
        """(n_r, …) of each process r in their order; n may differ."""
        return [rows]


ALONE = Exchange()
