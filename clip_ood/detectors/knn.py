"""The similarity to the k nearest neighbours among the ID training images."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from clip_ood.detectors.approximate_bank import ApproximateBank, check_faiss
from clip_ood.detectors.bank import Bank
from clip_ood.detectors.detector import Detector
from clip_ood.detectors.neighbour_count import check_count, count_of, told
from clip_ood.detectors.neighbours import largest_products
from clip_ood.outputs import Outputs, Reference

RECALLED = 1000  # images of the bank whose nearest others are sought in both ways


class KNN(Detector):
    """Mean of the k largest cosines to the bank: (1 / k) Σ_{i ∈ top k} cos(g, g_i); with `kth`, the k-th largest alone.

    g: features (N, D); the bank: features of all ID training images. k is a number or, below 1, a share of the bank: {k: 0.05} asks
    for 5 % of its rows, rounded, for one at least and 500 at most. A zero vector has cosine 0 to everything. An image of the bank is no
    neighbour of its own, given `copy_of`. Raises ValueError for any other k, and at `fit` for k above the size of the bank, or
    above the number of other images there if the bank's images come with `copy_of`.
    With index: ivf (pip install 'clip-ood[faiss]'), a search looks at the `probes` nearest of the lists into which faiss divides the bank:
    some neighbours are missed, and the notes say how many of the nearest of up to 1,000 images of the bank are found. It pays for many
    images and a bank of a million; it is neither saved for new images, which k-NN finds exactly, nor exported.
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
    monotone: ClassVar[bool] = True

    def __init__(
        self,
        reference: Reference | None = None,
        *,
        k: int | float = 1,
        kth: bool = False,
        index: str = "exact",
        probes: int = 16,
    ) -> None:
        super().__init__(reference)
        check_count(self.name, k)
        if index not in ("exact", "ivf"):
            raise self._error(f"index = {index}, expected exact or ivf")
        if probes < 1:
            raise self._error(f"probes = {probes}, expected a whole number from 1 on")
        self.k, self.kth = k, kth
        self.approximate = index == "ivf"
        if self.approximate:
            check_faiss()
            self.portable = self.monotone = False
        self.bank = ApproximateBank(probes) if self.approximate else Bank()

    @property
    def count(self) -> int:
        """Returns the number of neighbours."""
        return count_of(self.k, len(self.bank))

    def _fit(self) -> None:
        self.bank.check(self.name, self.count)
        self.bank.expect(self.count)
        self.notes += told(self.k, len(self.bank))
        if self.approximate:
            self.notes.append(self.bank.recall(RECALLED))

    def traceable(self) -> Callable[[Outputs], Tensor]:
        self.check_fitted()
        if self.approximate:
            raise self._error("index = ivf: no graph holds the lists of faiss; export knn, which is exact")
        columns, count = self.bank.dense(), self.count  # (D, N)
        return lambda rows: self._of(largest_products(normalize(rows.features.float(), dim=1), columns, count))

    def _score(self, rows: Outputs) -> Tensor:
        return self._of(self.bank.nearest(rows, self.count)[0])

    def _of(self, cosines: Tensor) -> Tensor:
        """Returns the score (n,) from the k largest cosines (n, k), descending."""
        return cosines[:, -1] if self.kth else cosines.mean(dim=1)
