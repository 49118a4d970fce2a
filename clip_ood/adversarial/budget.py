"""Limits how large a perturbation may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from clip_ood.errors import UserError


@dataclass(frozen=True)
class Budget:
    """A ball around the image: |p_i| ≤ ε (linf), or ‖p‖₂ ≤ ε over all pixels and channels (l2); pixels in [0, 1].

    Raises ValueError for an ε that leaves no perturbation.
    """

    norm: Literal["linf", "l2"]
    epsilon: float

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2"):
            raise UserError(f"budget: norm is linf or l2, not {self.norm!r}")
        if not self.epsilon > 0:
            raise UserError(f"budget: ε = {self.epsilon:g} allows no perturbation; give one above 0, or no budget")

    def project(self, perturbation: Tensor) -> Tensor:
        """Returns the nearest perturbation (B, 3, H, W) in the ball."""
        if self.norm == "linf":
            return perturbation.clamp(-self.epsilon, self.epsilon)
        lengths = perturbation.flatten(1).norm(dim=1).clamp_min(1e-12)
        return perturbation * (self.epsilon / lengths).clamp(max=1)[:, None, None, None]
