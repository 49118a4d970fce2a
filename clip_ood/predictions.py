"""The class of an image, by a head or else by the text embeddings, and how sure that is."""

from __future__ import annotations

from torch import Tensor

from clip_ood.outputs import Outputs


def predict(
    outputs: Outputs, text_embeddings: Tensor | None, logit_scale: float | None = None
) -> tuple[Tensor, Tensor] | None:
    """The class of each row (N,) and its probability (N,) float64: max softmax(z) of the head's logits (N, C), without a head
    max_c softmax(s ⟨h, t_c⟩) over text embeddings t (C, E), s = `logit_scale`. None without either.
    """
    if outputs.logits is not None:
        logits = outputs.logits.double()
    elif outputs.embeddings is None or text_embeddings is None:
        return None
    else:
        cosines = outputs.embeddings.float() @ text_embeddings.float().T  # (N, E) @ (E, C) -> (N, C)
        logits = (1.0 if logit_scale is None else logit_scale) * cosines.double()
    confidence, classes = logits.softmax(dim=1).max(dim=1)
    return classes, confidence
