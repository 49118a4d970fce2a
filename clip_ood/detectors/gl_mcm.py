"""Maximum concept matching of the whole image and of its patches."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from clip_ood.detectors.mcm import MCM, largest_softmax
from clip_ood.detectors.patches import images_at_once
from clip_ood.outputs import Outputs, Reference


class GLMCM(MCM):
    """Global and local maximum concept matching: max_c softmax(cos(h, t_c) / τ) + λ max_{p, c} softmax(cos(x_p, t_c) / τ).

    h: embeddings (N, E); x_p: tokens (N, P, E) of an image's patches in the joint space, of the kind `tokens` (value or output, see
    `clip_ood.backbones.inside`); t: text embeddings (C, E) of the reference; both softmaxes run over classes. τ: `tau` > 0; λ:
    `weight` ≥ 0. Raises ValueError for others. Miyai et al., 2025 (arXiv 2304.04521): τ = 1, λ = 1, value tokens.
    """

    name: ClassVar[str] = "gl_mcm"
    requires: ClassVar[tuple[str, ...]] = ("embeddings", "text_embeddings", "tokens")
    local: ClassVar[bool] = True

    def __init__(
        self, reference: Reference | None = None, *, tau: float = 1.0, weight: float = 1.0, tokens: str = "value"
    ) -> None:
        super().__init__(reference, tau=tau)
        if not weight >= 0:
            raise self._error(f"weight = {weight}, expected 0 or more")
        if tokens not in ("value", "output"):
            raise self._error(f"tokens = {tokens}, expected value or output")
        self.weight, self.tokens = weight, tokens

    def at_once(self, rows: Outputs) -> int:
        return images_at_once(rows.tokens[self.tokens], len(self.text))

    def _score(self, rows: Outputs) -> Tensor:
        return super()._score(rows) + self.weight * self._local_scores(rows).amax(dim=1)

    def _local_scores(self, rows: Outputs) -> Tensor:
        tokens = rows.tokens[self.tokens]
        cosines = normalize(tokens.float(), dim=2) @ self.text.to(tokens.device).T  # (n, P, E) @ (E, C) -> (n, P, C)
        return largest_softmax(cosines, self.tau)
