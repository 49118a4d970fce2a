"""The average of the zero-shot classifier and the head."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from clip_ood.detectors.mcm import TextDetector
from clip_ood.outputs import Outputs


class Ensemble(TextDetector):
    """Ensemble of text and head: max_c ½ (softmax(s ⟨h, t_c⟩) + softmax(z)).

    h: embeddings (N, E); t: text embeddings (C, E) of the reference; s: the model's own logit scale (100 for CLIP);
    z: head logits (N, C). Raises ValueError if one of them is missing, or if text and head have different numbers of classes.
    After COOkeD, 2025 (arXiv 2507.22576), which adds a third classifier.
    """

    name: ClassVar[str] = "ensemble"
    requires: ClassVar[tuple[str, ...]] = ("embeddings", "logits", "text_embeddings", "logit_scale")
    least_classes: ClassVar[int] = 2

    def _score(self, rows: Outputs) -> Tensor:
        if rows.logits.shape[1] != len(self.text):
            raise self._error(
                f"the head has {rows.logits.shape[1]} classes, the text embeddings {len(self.text)}; expected the same"
            )
        of_text = (float(self.reference.logit_scale) * self._cosines(rows).double()).softmax(dim=1)
        return (of_text + rows.logits.double().softmax(dim=1)).amax(dim=1) / 2
