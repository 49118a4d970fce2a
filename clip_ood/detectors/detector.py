"""What every detector is: parameters and a Reference, state from ID training images, one score an image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from clip_ood.outputs import Outputs, Reference

ROWS = 8192  # rows worked on at once: bounds memory, leaves matrix products large


class Detector(nn.Module):
    """A score of images, higher = more in-distribution.

    A subclass names the fields it `requires` of Outputs and Reference ("labels" are required of ID training images
    only), and gives `_score`: at most `ROWS` rows -> (n,). One that learns from ID training images also sets
    `learns = True` and gives `_update` and `_fit`. All are called without autograd and without autocast.

    Over several processes, between the last `update` and `fit`: `allocate` with the largest `sizes` of all processes,
    then sum each tensor of `sum_states` in place, and give `set_rows` the `rows` of all processes.

    Raises ValueError where the reference lacks a required field.
    """

    name: ClassVar[str] = ""
    requires: ClassVar[tuple[str, ...]] = ()
    learns: ClassVar[bool] = False

    def __init__(self, reference: Reference | None = None) -> None:
        super().__init__()
        self.reference = reference or Reference()
        self.notes: list[str] = []  # what the results table must say
        self.fitted = not self.learns
        for field in self.requires:
            if hasattr(self.reference, field) and getattr(self.reference, field) is None:
                raise self._error(f"needs {field} in the reference, got none")

    def update(self, outputs: Outputs) -> None:
        """Take in ID training images: any number of batches, in any order.

        Raises ValueError for a required field that is absent, of another length, or not finite.
        """
        if not self.learns:
            return
        self.fitted = False
        for rows in self._chunks(outputs, self.requires):
            with _exact(rows):
                self._update(rows)

    def fit(self) -> None:
        """Turn what was taken in into what scoring needs; once, after the last `update`. Raises ValueError."""
        if not self.learns:
            return
        self.notes.clear()
        with torch.inference_mode(False), torch.no_grad():
            self._fit()
        self.fitted = True

    def score(self, outputs: Outputs) -> Tensor:
        """Scores (N,) float32 of N images, higher = more in-distribution.

        Raises ValueError before `fit`, and for a required field that is absent, of another length, or not finite.
        """
        if not self.fitted:
            raise self._error("score was asked for before fit; call update with ID training images, then fit")
        scores = []
        for rows in self._chunks(outputs, [field for field in self.requires if field != "labels"]):
            with _exact(rows):
                scores.append(self._score(rows).float())
        return torch.cat(scores).to(next(_tensors(outputs)).device) if scores else torch.zeros(0)

    def sizes(self) -> tuple[int, ...]:
        """Sizes of the summed state, () where there is none."""
        return ()

    def allocate(self, sizes: Sequence[int], device: torch.device | str = "cpu") -> None:
        """Widen the summed state to `sizes` with zeros; `device` counts where nothing was taken in yet."""

    def sum_states(self) -> list[Tensor]:
        """Tensors that add over processes, to be changed in place."""
        return []

    def rows(self) -> list[tuple[Tensor, Tensor]]:
        """Kept rows as chunks (values (n, D), image-set rows (n,)), concatenated over processes."""
        return []

    def set_rows(self, rows: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Replace the kept rows."""

    def _update(self, rows: Outputs) -> None:
        raise NotImplementedError

    def _fit(self) -> None:
        raise NotImplementedError

    def _score(self, rows: Outputs) -> Tensor:
        raise NotImplementedError

    def _chunks(self, outputs: Outputs, needed: Iterable[str]) -> Iterator[Outputs]:
        needed = [field for field in needed if not hasattr(self.reference, field)]
        for field in needed:
            value = getattr(outputs, field)
            if value is None:
                raise self._error(f"needs {field}, and these outputs have none")
            if len(value) != len(outputs):
                raise self._error(f"{field} has {len(value)} rows, expected {len(outputs)}")
            if not all(chunk.isfinite().all() for chunk in value.split(ROWS)):
                raise self._error(f"{field} has values that are not finite")
        for start in range(0, len(outputs), ROWS):
            yield outputs.map(lambda value, start=start: value[start : start + ROWS])

    def _error(self, message: str) -> ValueError:
        return ValueError(f"{self.name or type(self).__name__}: {message}")


def _tensors(outputs: Outputs) -> Iterator[Tensor]:
    return (value for value in vars(outputs).values() if value is not None)


@contextmanager
def _exact(rows: Outputs) -> Iterator[None]:
    """No autograd, no autocast, and tensors that may be changed in place outside inference mode."""
    device = next(_tensors(rows)).device.type
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
        yield
