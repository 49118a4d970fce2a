"""Neural collapse inspired detection, which asks how well a centred feature points along the weights of its class."""

from __future__ import annotations

from math import isfinite
from typing import ClassVar

import torch
from torch import Tensor

from clip_ood.detectors.class_sums import ClassSums, features, one_class
from clip_ood.detectors.detector import Detector
from clip_ood.outputs import Outputs, Reference

BLOCK = 256  # images scored at once, whose float64 values a cache holds
SMALLEST = 1e-9  # of ‖f − μ‖ / ‖μ‖


class NCI(Detector):
    """Proximity of a feature to the weights of its class, with a term for its length: ⟨w_y, f − μ⟩ / ‖f − μ‖ + α ‖f‖₁.

    f: features (N, D); z: head logits (N, C); y = argmax_c z_c; w_c: rows of the reference's weight (C, D), not normalised; μ: mean
    feature of all ID training images; α: `alpha`, at least 0. ‖f − μ‖ counts as at least 1e-9 ‖μ‖, so that an image at the mean has
    a finite score. Raises ValueError for another alpha, and at `fit` without ID training images.
    Liu and Qin, 2025 (arXiv 2311.01479); α = 0.0001 is what their code begins with (litianliu/NCI-OOD, configs/postprocessors/nci.yml),
    before it tries 0.001, 0.01 and 0.1 on OOD images for validation. With α = 0 it is the score of pytorch-ood's NCI.

    >>> nci = NCI(Reference(weight=torch.tensor([[2.0, 0.0], [0.0, 1.0]])), alpha=0.0)
    >>> nci.update(Outputs(torch.tensor([[1.0, 1.0], [3.0, 1.0]]), logits=torch.zeros(2, 2)))
    >>> nci.fit()
    >>> nci.score(Outputs(torch.tensor([[5.0, 1.0], [2.0, 3.0]]), logits=torch.tensor([[10.0, 1.0], [4.0, 3.0]])))
    tensor([2., 0.])
    """

    name: ClassVar[str] = "nci"
    requires: ClassVar[tuple[str, ...]] = ("features", "logits", "weight")

    def __init__(self, reference: Reference | None = None, *, alpha: float = 1e-4) -> None:
        super().__init__(reference)
        if not (alpha >= 0 and isfinite(alpha)):
            raise self._error(f"alpha = {alpha}, expected a number from 0 on")
        self.alpha = alpha
        self.overall = ClassSums(features, one_class)
        self.register_buffer("mean", None)

    def _fit(self) -> None:
        if not self.overall.counts.sum() > 0:
            raise self._error("no ID training image was taken in; expected at least one")
        self.mean = self.overall.means()[0]

    def at_once(self, rows: Outputs) -> int:
        return BLOCK

    def _score(self, rows: Outputs) -> Tensor:
        f = rows.features.to(self.mean)
        centred = f - self.mean
        lengths = centred.norm(dim=1).clamp_min(SMALLEST * self.mean.norm() + 1e-12)
        weights = self.reference.weight.to(self.mean.device)[rows.logits.argmax(dim=1).to(self.mean.device)]
        along = (weights * centred).sum(dim=1)  # ⟨w_y, f − μ⟩, (n,)
        return along / lengths + self.alpha * torch.linalg.vector_norm(f, 1, dim=1)
