"""Predicts labels of images by the text encoder."""

from __future__ import annotations

from torch import Tensor


def pseudo_labels(embeddings: Tensor, text_embeddings: Tensor, logit_scale: float, min_confidence: float) -> Tensor:
    """Returns argmax_c p_c with p = softmax(s · ⟨h, t_c⟩), or -1 where max p < min_confidence.

    Shapes: embeddings h (N, E) and text_embeddings (C, E), both unit norm -> (N,) int64.
    Source: Adaloglou et al. 2024, arXiv 2303.05828.
    """
    probabilities = (logit_scale * embeddings.float() @ text_embeddings.float().T).softmax(dim=1)  # (N, C)
    confidence, labels = probabilities.max(dim=1)
    return labels.where(confidence >= min_confidence, -1)
