"""CLIPScope, which doubts a class the more, the more often it was predicted in the stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from clip_ood.outputs import Reference
from clip_ood.stream.adaptive import AdaptiveDetector, ranks


class CLIPScope(AdaptiveDetector):
    """CLIPScope: max_c p_c · P · (Σ_c n_c) / n_y, with y the predicted class and n_c the times that class c was predicted before, plus 1.

    p: softmax over the ID classes, and P = Σ_c e^{s⟨h, t_c⟩} / (Σ_c e^{s⟨h, t_c⟩} + Σ_w e^{s⟨h, w⟩}); h: embeddings (n, E); t: ID classes
    (C, E), w: words (M, E), both as "a photo of a …" (`Reference.eoe`); s: the model's own logit scale. An image is scored before it is
    counted, so that the score does not depend on how the stream is divided into batches. memory: counts (C,) int64.
    Fu et al., 2024 (arXiv 2405.14737); their words are the nearest and the farthest (data.negative_choice: nearest_and_farthest).

    >>> from clip_ood.outputs import NegativeLabels, Outputs
    >>> labels = NegativeLabels(torch.eye(3)[:2], torch.eye(3)[2:])
    >>> method = CLIPScope(Reference(logit_scale=1.0, eoe=labels))
    >>> method.score(Outputs(embeddings=torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])))
    tensor([1.1522, 0.8642], dtype=torch.float64)
    """

    name: ClassVar[str] = "clipscope"
    requires: ClassVar[tuple[str, ...]] = ("logit_scale", "eoe")

    def __init__(self, reference: Reference) -> None:
        super().__init__(reference)
        labels = reference.eoe
        self.num_classes = len(labels.classes)
        self.rows = (self.num_classes, self.num_classes)
        self.keep_texts(labels.classes, labels.negatives)

    def _empty(self) -> dict[str, Tensor]:
        return {"counts": torch.ones(self.num_classes, dtype=torch.int64)}

    def _unfit(self, memory: Mapping[str, Tensor]) -> str | None:
        return None if (memory["counts"] >= 1).all() else "a count is below 1"

    def _score(self, embeddings: Tensor) -> Tensor:
        logits = self.reference.logit_scale * (embeddings @ self.texts.T)  # (n, E) @ (E, C + M)
        largest, predicted = logits[:, : self.num_classes].max(dim=1)
        probability = (largest - logits.logsumexp(dim=1)).exp()  # max_c p_c · P, in which the sum over classes cancels
        counts = self.memory["counts"]
        before = counts[predicted] + ranks(predicted)
        total = counts.sum() + torch.arange(len(embeddings), device=embeddings.device)
        self.memory = {"counts": counts + predicted.bincount(minlength=self.num_classes)}
        return probability * total / before
