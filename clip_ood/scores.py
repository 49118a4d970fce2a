"""The scores of detectors for the images of one set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """The results of detectors for n images: indices (n,), scores (n,) by detector, and classes (n,) if there are any.

    `predictions` are those of the head or the text embeddings, `votes` those of the 20 nearest ID training images.
    """

    indices: Tensor
    scores: dict[str, Tensor]
    predictions: Tensor | None = None
    votes: Tensor | None = None

    def renamed(self, columns: Mapping[str, str]) -> Scores:
        """Returns the scores of the detectors that `columns` keeps, each under its new name."""
        return replace(self, scores={name: self.scores[label] for label, name in columns.items()})

    def matrix(self, detectors: Sequence[str]) -> Tensor:
        """Returns (n, K) scores of these K detectors."""
        return torch.stack([self.scores[name] for name in detectors], dim=1)
