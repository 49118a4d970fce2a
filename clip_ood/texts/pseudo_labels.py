"""Predicts labels of images by the text encoder."""

from __future__ import annotations

import torch
from torch import Tensor


def class_probabilities(embeddings: Tensor, text_embeddings: Tensor, logit_scale: float) -> Tensor:
    """Returns p = softmax(s · ⟨h, t_c⟩) over classes: (N, C) float32 of unit-norm embeddings h (N, E) and text embeddings t (C, E)."""
    return (logit_scale * embeddings.float() @ text_embeddings.float().T).softmax(dim=1)


def pseudo_probabilities(embeddings: Tensor, text_embeddings: Tensor, logit_scale: float) -> tuple[Tensor, Tensor]:
    """Returns max_c p_c (N,) float32 and argmax_c p_c (N,) int64, with p = softmax(s · ⟨h, t_c⟩).

    Shapes: embeddings h (N, E) and text_embeddings (C, E), both unit norm. Source: Adaloglou et al. 2024, arXiv 2303.05828.
    """
    return tuple(class_probabilities(embeddings, text_embeddings, logit_scale).max(dim=1))


def pseudo_labels(embeddings: Tensor, text_embeddings: Tensor, logit_scale: float, min_confidence: float) -> Tensor:
    """Returns the labels (N,) that `pseudo_probabilities` predicts, or -1 where the probability is below min_confidence."""
    confidence, labels = pseudo_probabilities(embeddings, text_embeddings, logit_scale)
    return labels.where(confidence >= min_confidence, -1)


def most_confident(labels: Tensor, confidence: Tensor, count: int) -> Tensor:
    """Returns labels (n,) with all but the `count` rows of largest confidence (n,) of each class set to -1; equal ones keep their order.

    Source: Huang et al. 2022, arXiv 2204.03649, whose pseudo-labels are the most confident of each class.

    >>> most_confident(torch.tensor([0, 0, 1, 0, -1]), torch.tensor([0.5, 0.9, 0.2, 0.7, 1.0]), 2)
    tensor([-1,  0,  1,  0, -1])
    """
    order = confidence.argsort(descending=True, stable=True)
    order = order[labels[order].argsort(stable=True)]  # by class, the most confident first
    sorted_labels = labels[order]
    starts = torch.searchsorted(sorted_labels, sorted_labels)  # of each one's class
    ranks = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)) - starts)
    return labels.where(ranks < count, -1)
