"""Maximum concept matching, the zero-shot score."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from clip_ood.detectors.detector import Detector
from clip_ood.outputs import Outputs, Reference

CELLS = 2**19  # cosines computed at once, whose exponentials a cache holds


def largest_softmax(cosines: Tensor, tau: float) -> Tensor:
    """Returns max_c softmax(cosines / τ), (…,) float64, of float32 cosines (…, C): 1 / Σ_c e^{(cos_c − max) / τ}."""
    largest = cosines.amax(dim=-1, keepdim=True)
    return 1 / (cosines - largest).div_(tau).exp_().sum(dim=-1).double()


class TextDetector(Detector):
    """A detector that compares embeddings h (N, E) with the text embeddings t (C, E) of the reference."""

    def __init__(self, reference: Reference | None = None) -> None:
        super().__init__(reference)
        self.register_buffer("text", normalize(self.reference.text_embeddings.float(), dim=1), persistent=False)

    def _cosines(self, rows: Outputs) -> Tensor:
        """Returns cos(h, t_c), (n, C) float32."""
        embeddings = normalize(rows.embeddings.float(), dim=1)
        return embeddings @ self.text.to(embeddings.device).T  # (n, E) @ (E, C) -> (n, C)


class MCM(TextDetector):
    """Maximum concept matching: max_c softmax(cos(h, t_c) / τ), without the model's logit scale.

    h: embeddings (N, E); t: text embeddings (C, E) of the reference; τ: `tau` > 0. Computed in float32; the relative
    error is below 1e-6 at τ = 1, where all scores lie just above 1 / C, and below 1e-6 / τ for a smaller one. Raises ValueError for
    another tau or without text embeddings. Ming et al., 2022 (arXiv 2211.13445).
    """

    name: ClassVar[str] = "mcm"
    requires: ClassVar[tuple[str, ...]] = ("embeddings", "text_embeddings")
    least_classes: ClassVar[int] = 2

    def __init__(self, reference: Reference | None = None, *, tau: float = 1.0) -> None:
        super().__init__(reference)
        if not tau > 0:
            raise self._error(f"tau = {tau}, expected a number above 0")
        self.tau = tau

    def at_once(self, rows: Outputs) -> int:
        return CELLS // len(self.text)

    def _score(self, rows: Outputs) -> Tensor:
        return largest_softmax(self._cosines(rows), self.tau)
