"""The negative free energy of the logits."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from clip_ood.detectors.detector import Detector
from clip_ood.outputs import Outputs, Reference


class Energy(Detector):
    """Negative free energy: T · logsumexp_c(z / T).

    z: head logits (N, C); T: `temperature` > 0. Raises ValueError for another temperature.
    Liu et al., 2020 (arXiv 2010.03759).
    """

    name: ClassVar[str] = "energy"
    requires: ClassVar[tuple[str, ...]] = ("logits",)

    def __init__(self, reference: Reference | None = None, *, temperature: float = 1.0) -> None:
        super().__init__(reference)
        if not temperature > 0:
            raise self._error(f"temperature = {temperature}, expected a number above 0")
        self.temperature = temperature

    def _score(self, rows: Outputs) -> Tensor:
        return self.temperature * (rows.logits.double() / self.temperature).logsumexp(dim=1)
