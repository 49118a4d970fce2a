"""The fast decision boundary detector, which measures how far a feature lies from the boundaries of its class."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from clip_ood.detectors.class_sums import ClassSums, features, one_class
from clip_ood.detectors.detector import Detector
from clip_ood.detectors.single import single
from clip_ood.outputs import Outputs, Reference

SMALLEST = 1e-9  # of ‖f − μ‖ / ‖μ‖


class FDBD(Detector):
    """Distances to decision boundaries, divided by the distance to the mean: Σ_{c ≠ y} |z_y − z_c| / ‖w_y − w_c‖ / ‖f − μ‖.

    f: features (N, D); z = W f + b: head logits (N, C); y = argmax_c z_c; w_c: rows of the reference's weight (C, D);
    μ: mean feature of all ID training images. Two classes of equal weights, up to rounding, have no boundary: their term is left out.
    ‖f − μ‖ counts as at least 1e-9 ‖μ‖, so that an image at the mean has a finite score.
    Raises ValueError at `fit` without ID training images.
    Liu and Qin, 2024 (arXiv 2312.11536; their code takes the mean over c where this takes the sum: the same order).
    """

    name: ClassVar[str] = "fdbd"
    requires: ClassVar[tuple[str, ...]] = ("features", "logits", "weight")
    least_classes: ClassVar[int] = 2

    def __init__(self, reference: Reference | None = None) -> None:
        super().__init__(reference)
        self.overall = ClassSums(features, one_class)
        for buffer in ("mean", "inverse_gaps"):
            self.register_buffer(buffer, None)

    def _fit(self) -> None:
        if not self.overall.counts.sum() > 0:
            raise self._error("no ID training image was taken in; expected at least one")
        self.mean = self.overall.means()[0]
        weight = self.reference.weight.to(self.mean)
        gaps = torch.cdist(
            weight, weight, compute_mode="donot_use_mm_for_euclid_dist"
        )  # (C, C), of rounding for equal rows
        rounding = torch.finfo(self.reference.weight.dtype).eps * weight.norm(dim=1).max()
        self.inverse_gaps = single(torch.where(gaps > rounding, gaps.reciprocal(), 0))

    def _score(self, rows: Outputs) -> Tensor:
        z = rows.logits.to(self.mean)
        largest, y = z.max(dim=1, keepdim=True)
        boundaries = torch.linalg.vecdot(largest - z, self.inverse_gaps[y.squeeze(1)])  # (n, C) -> (n,)
        distances = (rows.features.to(self.mean) - self.mean).norm(dim=1)
        return boundaries / distances.clamp_min(SMALLEST * self.mean.norm() + 1e-12)
