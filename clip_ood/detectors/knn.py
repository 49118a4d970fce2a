"""The similarity to the k nearest neighbours among the ID training images."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from clip_ood.detectors.bank import Bank
from clip_ood.detectors.detector import Detector
from clip_ood.detectors.neighbours import largest_products
from clip_ood.outputs import Outputs, Reference


class KNN(Detector):
    """Mean of the k largest cosines to the bank: (1 / k) Σ_{i ∈ top k} cos(g, g_i); with `kth`, the k-th largest alone.

    g: features (N, D); the bank: features of all ID training images. A zero vector has cosine 0 to everything. Raises
    ValueError for k < 1, and at `fit` for k above the size of the bank.
    k = 1: Adaloglou et al., 2024 (arXiv 2303.05828); `kth`: Sun et al., 2022 (arXiv 2204.06507).

    >>> import torch
    >>> knn = KNN()
    >>> knn.update(Outputs(features=torch.tensor([[2.0, 0.0], [0.0, 1.0]])))
    >>> knn.fit()
    >>> knn.score(Outputs(features=torch.tensor([[3.0, 4.0]])))
    tensor([0.8000])
    """

    name: ClassVar[str] = "knn"
    requires: ClassVar[tuple[str, ...]] = ("features",)
    leaves_one_out: ClassVar[bool] = True

    def __init__(self, reference: Reference | None = None, *, k: int = 1, kth: bool = False) -> None:
        super().__init__(reference)
        if type(k) is not int or k < 1:
            raise self._error(f"k = {k}, expected a whole number from 1 on")
        self.k, self.kth = k, kth
        self.bank = Bank()

    def _fit(self) -> None:
        if self.k > len(self.bank):
            raise self._error(f"k = {self.k}, but the bank has {len(self.bank)} rows; expected k of at most that")
        self.bank.expect(self.k)

    def traceable(self) -> Callable[[Outputs], Tensor]:
        self.check_fitted()
        columns = self.bank.dense()  # (D, N)
        return lambda rows: self._of(largest_products(normalize(rows.features.float(), dim=1), columns, self.k))

    def _score(self, rows: Outputs) -> Tensor:
        return self._of(self.bank.nearest(rows, self.k)[0])

    def _of(self, cosines: Tensor) -> Tensor:
        """Returns the score (n,) from the k largest cosines (n, k), descending."""
        return cosines[:, -1] if self.kth else cosines.mean(dim=1)
