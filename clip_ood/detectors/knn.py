"""k nearest neighbours among the ID training images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_ood.detectors.detector import Detector
from clip_ood.detectors.neighbours import nearest
from clip_ood.outputs import Outputs, Reference

DTYPES = {"float32": torch.float32, "float16": torch.float16}


class KNN(Detector):
    """Mean of the k largest cosines to the bank: (1 / k) Σ_{i ∈ top k} cos(g, g_i); with `kth` the k-th largest.

    g: features (N, D); the bank: features of all ID training images, kept L2-normalised as the chunks they came in, of
    `dtype` "float32" or "float16" (half the memory). A zero vector has cosine 0 to everything. Raises ValueError for
    k < 1 and another dtype, and at `fit` for k above the bank.
    k = 1: Adaloglou et al., 2024 (arXiv 2303.05828); `kth`: Sun et al., 2022 (arXiv 2204.06507).

    >>> knn = KNN()
    >>> knn.update(Outputs(features=torch.tensor([[2.0, 0.0], [0.0, 1.0]])))
    >>> knn.fit()
    >>> knn.score(Outputs(features=torch.tensor([[3.0, 4.0]])))
    tensor([0.8000])
    """

    name: ClassVar[str] = "knn"
    requires: ClassVar[tuple[str, ...]] = ("features",)
    learns: ClassVar[bool] = True

    def __init__(
        self, reference: Reference | None = None, *, k: int = 1, kth: bool = False, dtype: str = "float32"
    ) -> None:
        super().__init__(reference)
        if not isinstance(k, int) or k < 1:
            raise self._error(f"k = {k}, expected a whole number from 1 on")
        if dtype not in DTYPES:
            raise self._error(f"dtype = {dtype!r}, expected one of {', '.join(DTYPES)}")
        self.k, self.kth, self.dtype = k, kth, DTYPES[dtype]
        self.bank: list[Tensor] = []  # never concatenated: that would hold it twice
        self.indices: list[Tensor] = []

    def neighbours(self, outputs: Outputs, k: int) -> tuple[Tensor, Tensor]:
        """The k nearest ID training images: cosines (N, k), descending, and their `Outputs.indices` (N, k).

        Raises ValueError before `fit`, for k outside 1 … bank, and for a bank that came without indices.
        """
        if not self.fitted:
            raise self._error("neighbours were asked for before fit")
        indices = torch.cat(self.indices)
        if (indices < 0).any():
            raise self._error("neighbours need indices of every image of the bank, and some came without")
        found = [nearest(_unit(rows.features), self.bank, k) for rows in self._chunks(outputs, self.requires)]
        if not found:
            return torch.zeros(0, k), torch.zeros(0, k, dtype=torch.int64)
        cosines, positions = (torch.cat(parts) for parts in zip(*found, strict=True))
        return cosines, indices[positions]

    def rows(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.bank, self.indices, strict=True))

    def set_rows(self, rows: Iterable[tuple[Tensor, Tensor]]) -> None:
        self.bank, self.indices = [], []
        for values, indices in rows:
            self.bank.append(values)
            self.indices.append(indices)

    def _apply(self, fn: Any, recurse: bool = True) -> KNN:
        super()._apply(fn, recurse)
        self.set_rows([(fn(values), fn(indices)) for values, indices in self.rows()])
        return self

    def _update(self, rows: Outputs) -> None:
        values = _unit(rows.features)
        indices = torch.full((len(values),), -1) if rows.indices is None else rows.indices.clone()
        self.bank.append(values.to(self.dtype))
        self.indices.append(indices.to(values.device))

    def _fit(self) -> None:
        size = sum(len(chunk) for chunk in self.bank)
        if self.k > size:
            raise self._error(f"k = {self.k}, but the bank has {size} rows; expected k of at most that")

    def _score(self, rows: Outputs) -> Tensor:
        cosines, _ = nearest(_unit(rows.features), self.bank, self.k)  # (n, k)
        return cosines[:, -1] if self.kth else cosines.mean(dim=1)


def _unit(features: Tensor) -> Tensor:
    return normalize(features.float(), dim=1)
