"""The base class of test-time methods: a memory of the images that were scored so far, and a score that depends on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clip_ood.detectors.detector import exact
from clip_ood.errors import UserError
from clip_ood.outputs import Outputs, Reference


class AdaptiveDetector(nn.Module, ABC):
    """Scores a stream of images batch by batch, and remembers something of each batch; a higher score means more in-distribution.

    The score of an image depends on all images that came before it, and of some methods on those of its own batch, too. Equal
    streams in equal batches have scores that are equal to the bit. Everything is computed in float64.

    A subclass names in `requires` the fields of the Reference that it needs, and in `rows` the fewest and the most rows of each tensor of its
    `memory`; it defines `_empty`, the memory before the first image, and `_score`, which scores a batch of unit-norm embeddings (n, E)
    and updates the memory.
    Raises UserError if the reference lacks a required field.
    """

    name: ClassVar[str] = ""
    requires: ClassVar[tuple[str, ...]] = ()
    rows: tuple[int, int]

    def __init__(self, reference: Reference) -> None:
        super().__init__()
        self.reference = reference
        self.memory: dict[str, Tensor] = {}
        for field in self.requires:
            if getattr(reference, field) is None:
                raise self._error(f"needs {field} in the reference, got none")

    def keep_texts(self, *parts: Tensor) -> None:
        """Keeps text embeddings (K, E), those of `parts` one after the other, with unit norm, and begins with an empty memory."""
        self.register_buffer("texts", normalize(torch.cat(parts).detach().double(), dim=1), persistent=False)
        self.memory = self._empty()

    @property
    def width(self) -> int:
        """E, the width of the embeddings."""
        return self.texts.shape[1]

    def score(self, outputs: Outputs) -> Tensor:
        """Returns scores (n,) float64 of the next n images of the stream, and updates the memory.

        Raises UserError for outputs without embeddings, of another width, or with values that are not finite; the memory is then
        as it was.
        """
        embeddings = outputs.embeddings
        if embeddings is None:
            raise self._error("needs embeddings in the joint space, and these outputs have none")
        if embeddings.ndim != 2 or embeddings.shape[1] != self.width:
            raise self._error(f"embeddings have the shape {tuple(embeddings.shape)}, expected (n, {self.width})")
        if not embeddings.isfinite().all():
            raise self._error("embeddings have values that are not finite")
        with exact(outputs):
            self.to(embeddings.device)
            self.memory = {name: value.to(embeddings.device) for name, value in self.memory.items()}
            return self._score(normalize(embeddings.double(), dim=1))

    def restore(self, memory: Mapping[str, Tensor]) -> None:
        """Goes on from a memory that this method had. Raises UserError if it is none that a method of these parameters has."""
        if why := self._unlike(memory) or self._unfit(memory):
            raise self._error(f"this is no memory of it: {why}")
        self.memory = {name: value.clone() for name, value in memory.items()}

    def _unlike(self, memory: Mapping[str, Tensor]) -> str | None:
        """Says in which names, types, shapes and numbers of rows a memory differs from those that this method has."""
        expected = self._empty()
        if set(memory) != set(expected):
            return f"it holds {', '.join(sorted(memory)) or 'nothing'}, expected {', '.join(sorted(expected))}"
        counts = {name: len(value) if value.ndim else -1 for name, value in memory.items()}
        for name, value in memory.items():
            if value.dtype != expected[name].dtype or value.shape[1:] != expected[name].shape[1:]:
                return f"{name} is of the shape {tuple(value.shape)} and type {value.dtype}"
            if not self.rows[0] <= counts[name] <= self.rows[1] or counts[name] != next(iter(counts.values())):
                return f"{name} has {counts[name]} rows, expected {self.rows[0]} to {self.rows[1]}, the same for all"
            if not value.isfinite().all():
                return f"{name} has values that are not finite"
        return None

    def _unfit(self, memory: Mapping[str, Tensor]) -> str | None:
        """Says why tensors of the right shapes are no memory of this method; None if they are one."""
        return None

    @abstractmethod
    def _empty(self) -> dict[str, Tensor]:
        """Returns the memory before the first image."""

    @abstractmethod
    def _score(self, embeddings: Tensor) -> Tensor:
        """Returns scores (n,) of unit-norm embeddings (n, E), and updates the memory."""

    def _check_shares(self, **values: float) -> None:
        for name, value in values.items():
            if not 0 <= value <= 1:
                raise self._error(f"{name} = {value}, expected 0 to 1")

    def _check_counts(self, fewest: int = 1, **values: int) -> None:
        for name, value in values.items():
            if type(value) is not int or value < fewest:
                raise self._error(f"{name} = {value}, expected a whole number from {fewest} on")

    def _error(self, message: str) -> UserError:
        return UserError(f"{self.name or type(self).__name__}: {message}")


def ranks(groups: Tensor) -> Tensor:
    """Returns, for each of n members, how many members of its group stand before it: (n,) int64.

    >>> ranks(torch.tensor([7, 3, 7, 7, 3]))
    tensor([0, 0, 1, 2, 1])
    """
    order = groups.argsort(stable=True)
    _, sizes = groups[order].unique_consecutive(return_counts=True)
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    found = torch.empty_like(order)
    found[order] = torch.arange(len(groups), device=groups.device) - starts
    return found
