"""KL matching, the distance to the nearest class's typical probabilities."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from clip_ood.detectors.class_sums import ClassSums, predicted
from clip_ood.detectors.detector import Detector
from clip_ood.detectors.single import single
from clip_ood.outputs import Outputs, Reference


def probabilities(rows: Outputs) -> Tensor:
    """Returns softmax z (n, C) in float64."""
    return rows.logits.double().softmax(dim=1)


class KLMatching(Detector):
    """KL matching: −min_c KL(p ‖ p̄_c), p̄_c the mean of p = softmax(z) over ID training images predicted as c.

    z: head logits (N, C). Σ p log p is one sum for each row, and Σ p log p̄_c is one product for all classes. Classes that no
    training image is predicted as are skipped. 0 log 0 is 0, and probabilities of p̄ below the smallest normal float64,
    2e-308, are raised to it, so that no score is infinite. Raises ValueError at `fit` without ID training images.
    Hendrycks et al., 2022 (arXiv 1911.11132).
    """

    name: ClassVar[str] = "kl_matching"
    requires: ClassVar[tuple[str, ...]] = ("logits",)
    least_classes: ClassVar[int] = 2

    def __init__(self, reference: Reference | None = None) -> None:
        super().__init__(reference)
        self.typical = ClassSums(probabilities, predicted)
        self.register_buffer("log_typical", None)

    def _fit(self) -> None:
        seen = self.typical.counts > 0
        if not seen.any():
            raise self._error("no ID training image was taken in; expected at least one")
        self.log_typical = single(self.typical.means()[seen].clamp_min(torch.finfo(torch.float64).tiny).log())

    def _score(self, rows: Outputs) -> Tensor:
        p = probabilities(rows)
        cross = p @ self.log_typical.to(p.device).T  # (n, C) @ (C, seen) -> (n, seen)
        return cross.amax(dim=1) - torch.xlogy(p, p).sum(dim=1)
