"""k nearest neighbours among the ID training images."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_ood.detectors.bank import Bank
from clip_ood.detectors.detector import Detector, chunks
from clip_ood.detectors.neighbours import nearest
from clip_ood.outputs import Outputs, Reference


class KNN(Detector):
    """Mean of the k largest cosines to the bank: (1 / k) Σ_{i ∈ top k} cos(g, g_i); with `kth` the k-th largest.

    g: features (N, D); the bank: features of all ID training images. A zero vector has cosine 0 to everything. Raises
    ValueError for k < 1, and at `fit` for k above the bank.
    k = 1: Adaloglou et al., 2024 (arXiv 2303.05828); `kth`: Sun et al., 2022 (arXiv 2204.06507).

    >>> knn = KNN()
    >>> knn.update(Outputs(features=torch.tensor([[2.0, 0.0], [0.0, 1.0]])))
    >>> knn.fit()
    >>> knn.score(Outputs(features=torch.tensor([[3.0, 4.0]])))
    tensor([0.8000])
    """

    name: ClassVar[str] = "knn"
    requires: ClassVar[tuple[str, ...]] = ("features",)

    def __init__(self, reference: Reference | None = None, *, k: int = 1, kth: bool = False) -> None:
        super().__init__(reference)
        if not isinstance(k, int) or k < 1:
            raise self._error(f"k = {k}, expected a whole number from 1 on")
        self.k, self.kth = k, kth
        self.bank = Bank()

    def neighbours(self, outputs: Outputs, k: int) -> tuple[Tensor, Tensor]:
        """The k nearest ID training images: cosines (N, k), descending, and their `Outputs.indices` (N, k).

        Raises ValueError before `fit`, for k outside 1 … bank, and for a bank that came without indices.
        """
        if not self.fitted:
            raise self._error("neighbours were asked for before fit")
        indices = torch.cat(self.bank.indices)
        if (indices < 0).any():
            raise self._error("neighbours need indices of every image of the bank, and some came without")
        self._check(outputs, self.requires)
        found = [self._nearest(rows, k) for rows in chunks(outputs)]
        if not found:
            return torch.zeros(0, k), torch.zeros(0, k, dtype=torch.int64)
        cosines, positions = (torch.cat(parts) for parts in zip(*found, strict=True))
        return cosines, indices[positions]

    def _fit(self) -> None:
        if self.k > len(self.bank):
            raise self._error(f"k = {self.k}, but the bank has {len(self.bank)} rows; expected k of at most that")

    def _score(self, rows: Outputs) -> Tensor:
        cosines, _ = self._nearest(rows, self.k)  # (n, k)
        return cosines[:, -1] if self.kth else cosines.mean(dim=1)

    def _nearest(self, rows: Outputs, k: int) -> tuple[Tensor, Tensor]:
        return nearest(normalize(rows.features.float(), dim=1), self.bank.chunks, k, self.bank.scales())
