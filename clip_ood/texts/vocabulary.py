"""Names images by the nearest words of a vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clip_ood.detectors.neighbours import nearest

PROMPTS = ("a photo of a {}.",)  # a word is embedded in these


@dataclass(frozen=True)
class Vocabulary:
    """W words and their unit-norm text embeddings t (W, E)."""

    words: tuple[str, ...]
    embeddings: Tensor

    def __len__(self) -> int:
        return len(self.words)

    def nearest(self, embeddings: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Returns the cosines ⟨h, t⟩ (N, k), descending, of unit-norm image embeddings h (N, E) to their k nearest words, and the places
        (N, k) of these. Raises: ValueError for more words than there are."""
        return nearest(embeddings, [self.embeddings], k)

    def to(self, device: torch.device) -> Vocabulary:
        """Returns the same vocabulary with its embeddings on a device."""
        return replace(self, embeddings=self.embeddings.to(device))

    def named(self, places: Tensor) -> list[tuple[str, ...]]:
        """Returns the words at places (N, k)."""
        return [tuple(self.words[place] for place in row) for row in places.tolist()]
