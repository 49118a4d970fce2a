"""The largest logit of the head."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from clip_ood.detectors.detector import Detector
from clip_ood.outputs import Outputs


class MaxLogit(Detector):
    """Maximum logit: max_c z_c of the head logits z (N, C). Hendrycks et al., 2022 (arXiv 1911.11132)."""

    name: ClassVar[str] = "max_logit"
    requires: ClassVar[tuple[str, ...]] = ("logits",)

    def _score(self, rows: Outputs) -> Tensor:
        return rows.logits.amax(dim=1)
