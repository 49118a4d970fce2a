"""The generalised entropy of the head's probabilities."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from clip_ood.detectors.detector import Detector
from clip_ood.outputs import Outputs, Reference


class GEN(Detector):
    """Negative generalised entropy: −Σ p^γ (1 − p)^γ over the M largest of p = softmax(z).

    z: head logits (N, C); γ: `gamma` > 0; M: `m`, or C if there are fewer classes. Raises ValueError for another
    gamma or m.
    Liu et al., 2023 (CVPR, "GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection").

    >>> import torch
    >>> GEN(gamma=0.5).score(Outputs(logits=torch.tensor([[0.0, 0.0], [0.0, 50.0]])))
    tensor([-1.0000e+00, -2.7776e-11])
    """

    name: ClassVar[str] = "gen"
    requires: ClassVar[tuple[str, ...]] = ("logits",)
    least_classes: ClassVar[int] = 2

    def __init__(self, reference: Reference | None = None, *, gamma: float = 0.1, m: int = 100) -> None:
        super().__init__(reference)
        if not gamma > 0:
            raise self._error(f"gamma = {gamma}, expected a number above 0")
        if type(m) is not int or m < 1:
            raise self._error(f"m = {m}, expected a whole number from 1 on")
        self.gamma, self.m = gamma, m

    def _score(self, rows: Outputs) -> Tensor:
        p = rows.logits.double().softmax(dim=1)
        first = p.argmax(dim=1, keepdim=True)
        others = p.scatter(1, first, 0).sum(dim=1, keepdim=True)  # 1 - p is 0 for p near 1, and a small power is not
        spread = p * (1 - p).scatter(1, first, others)
        if self.m < p.shape[1]:
            spread = spread.gather(1, p.topk(self.m, dim=1).indices)
        return -spread.pow(self.gamma).sum(dim=1)
