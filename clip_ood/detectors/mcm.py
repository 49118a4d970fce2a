"""Maximum concept matching, the zero-shot score."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from clip_ood.detectors.detector import Detector
from clip_ood.outputs import Outputs, Reference


class MCM(Detector):
    """Maximum concept matching: max_c softmax(cos(h, t_c) / τ), without the model's logit scale.

    h: embeddings (N, E); t: text embeddings (C, E) of the reference; τ: `tau` > 0. At τ = 1 all scores lie just above
    1 / C, so the softmax is taken in float64. Raises ValueError for another tau or without text embeddings.
    Ming et al., 2022 (arXiv 2211.13445).
    """

    name: ClassVar[str] = "mcm"
    requires: ClassVar[tuple[str, ...]] = ("embeddings", "text_embeddings")
    least_classes: ClassVar[int] = 2

    def __init__(self, reference: Reference | None = None, *, tau: float = 1.0) -> None:
        super().__init__(reference)
        if not tau > 0:
            raise self._error(f"tau = {tau}, expected a number above 0")
        self.tau = tau
        self.register_buffer("text", normalize(self.reference.text_embeddings.float(), dim=1), persistent=False)

    def _score(self, rows: Outputs) -> Tensor:
        embeddings = normalize(rows.embeddings.float(), dim=1)
        cosines = embeddings @ self.text.to(embeddings.device).T  # (n, E) @ (E, C) -> (n, C)
        return (cosines.double() / self.tau).softmax(dim=1).amax(dim=1)
