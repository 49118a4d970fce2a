"""The zero-shot score of models that were trained with a sigmoid loss."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from clip_ood.detectors.mcm import TextDetector
from clip_ood.outputs import Outputs


class MCMSigmoid(TextDetector):
    """Maximum concept matching by the sigmoid: max_c σ(s ⟨h, t_c⟩ + b), the largest probability that image and class belong together.

    h: embeddings (N, E); t: text embeddings (C, E) of the reference; s, b: the model's own logit scale and logit bias. Classes do
    not compete, so that it is a score of one class as well, and its order of images is that of the largest cosine. The sigmoid is
    taken in float64, as b is -10 or lower; a score is within 1e-5 of that of float64 cosines. Raises ValueError without those. The loss is that of Zhai et al., 2023 (arXiv 2303.15343).

    >>> import torch
    >>> from clip_ood.outputs import Reference
    >>> detector = MCMSigmoid(Reference(text_embeddings=torch.eye(2), logit_scale=10.0, logit_bias=-10.0))
    >>> detector.score(Outputs(embeddings=torch.tensor([[1.0, 0.0], [0.6, -0.8]])))
    tensor([0.5000, 0.0180])
    """

    name: ClassVar[str] = "mcm_sigmoid"
    requires: ClassVar[tuple[str, ...]] = ("embeddings", "text_embeddings", "logit_scale", "logit_bias")

    def _score(self, rows: Outputs) -> Tensor:
        cosines = self._cosines(rows)
        return (self.reference.logit_scale * cosines.amax(dim=1).double() + self.reference.logit_bias).sigmoid()
