"""Nearest-neighbour guidance, which scales the energy by the similarity to confident training images."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_ood.detectors.bank import Bank
from clip_ood.detectors.detector import Detector
from clip_ood.detectors.neighbours import largest_products, nearest
from clip_ood.outputs import Outputs, Reference


class NNGuide(Detector):
    """Energy times guidance: logsumexp z · mean of the K largest ⟨f^, f_i^⟩ · logsumexp z_i over drawn training images.

    f: features (N, D), ^ = L2-normalised; z: head logits (N, C), which for training images are W f_i + b from the reference.
    1 % of the bank is drawn (at least 1000 images, or all) by a hash of `seed` and `Outputs.indices`, which does not depend
    on the order of batches. K: `k`, by default 100 or the number of drawn images if that is smaller. Raises ValueError for
    k < 1, and at `fit` for a k above the number of drawn images, without ID training images, and for a bank without indices.
    Park et al., 2023 (arXiv 2309.14888).
    """

    name: ClassVar[str] = "nnguide"
    requires: ClassVar[tuple[str, ...]] = ("features", "logits", "weight", "bias")
    searches: ClassVar[bool] = False

    def __init__(self, reference: Reference | None = None, *, k: int | None = None, seed: int = 0) -> None:
        super().__init__(reference)
        if k is not None and (type(k) is not int or k < 1):
            raise self._error(f"k = {k}, expected a whole number from 1 on")
        self.k, self.seed = k, seed
        self.bank = Bank()
        self.register_buffer("guides", None)

    def _fit(self) -> None:
        if not len(self.bank):
            raise self._error("no ID training image was taken in; expected at least one")
        drawn = self.bank.draw(max(len(self.bank) // 100, min(len(self.bank), 1000)), self.seed)  # (m, D)
        if self.k is not None and self.k > len(drawn):
            raise self._error(
                f"k = {self.k}, but {len(drawn)} images of the bank are drawn; expected k of at most that"
            )
        weight, bias = self.reference.weight.to(drawn), self.reference.bias.to(drawn)
        energies = torch.addmm(bias, drawn, weight.T).logsumexp(dim=1, keepdim=True)
        self.guides = (normalize(drawn, dim=1) * energies).float()

    def traceable(self) -> Callable[[Outputs], Tensor]:
        self.check_fitted()
        columns = self.guides.T.contiguous()  # (D, m)
        return lambda rows: self._guided(rows, lambda queries, k: largest_products(queries, columns, k))

    def _score(self, rows: Outputs) -> Tensor:
        return self._guided(rows, lambda queries, k: nearest(queries, [self.guides], k)[0])

    def _guided(self, rows: Outputs, search: Callable[[Tensor, int], Tensor]) -> Tensor:
        queries = normalize(rows.features.float(), dim=1)
        guidance = search(queries, self.k or min(100, len(self.guides)))  # (n, K)
        energies = rows.logits.double().logsumexp(dim=1)
        return energies * guidance.double().mean(dim=1).to(energies.device)
