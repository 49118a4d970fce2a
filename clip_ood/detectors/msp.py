"""The maximum softmax probability of the head."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from clip_ood.detectors.detector import Detector
from clip_ood.outputs import Outputs, Reference


class MSP(Detector):
    """Maximum softmax probability: max_c softmax(z / T).

    z: head logits (N, C); T: `temperature` > 0. Raises ValueError for another temperature.
    Hendrycks and Gimpel, 2017 (arXiv 1610.02136).

    >>> import torch
    >>> MSP().score(Outputs(logits=torch.tensor([[0.0, 0.0], [0.0, 50.0]])))
    tensor([0.5000, 1.0000])
    """

    name: ClassVar[str] = "msp"
    requires: ClassVar[tuple[str, ...]] = ("logits",)
    least_classes: ClassVar[int] = 2

    def __init__(self, reference: Reference | None = None, *, temperature: float = 1.0) -> None:
        super().__init__(reference)
        if not temperature > 0:
            raise self._error(f"temperature = {temperature}, expected a number above 0")
        self.temperature = temperature

    def _score(self, rows: Outputs) -> Tensor:
        return (rows.logits.double() / self.temperature).softmax(dim=1).amax(dim=1)
