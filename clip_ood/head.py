"""The heads that give logits: one linear layer on standardised features, and Tip-Adapter's cache beside the texts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from clip_ood.features.rows import Rows
from clip_ood.outputs import Cache

KEYS = 4096  # of a cache that images are compared with at once: bounds memory


class StandardisedLinear(nn.Module):
    """Computes z = A (g − mean) / std + a: features (N, D) -> logits (N, C).

    mean and std (D,) are those of the ID training features; a feature that never varies is not scaled.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, num_classes)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def forward(self, features: Tensor) -> Tensor:
        return self.linear((features.float() - self.mean) / self.std)

    def standardise(self, mean: Tensor, std: Tensor) -> None:
        """Takes the mean and standard deviation of the training features."""
        self.mean.copy_(mean)
        self.std.copy_(std.where(std > 0, 1))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Returns W (C, D) and b (C,) with z = W g + b: the standardisation is folded into the layer."""
        weight = self.linear.weight.detach().double() / self.std.double()
        return weight.float(), (self.linear.bias.detach().double() - weight @ self.mean.double()).float()


def head_logits(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Returns z = W g + b of features (N, D), weight (C, D), bias (C,): (N, C) float32.

    It is summed in float64, so that a batch of one gives what a batch of thousands gives.
    """
    rows = features.double()
    return torch.addmm(bias.to(rows), rows, weight.to(rows).T).float()


def cache_logits(embeddings: Tensor, text: Tensor, scale: float, cache: Cache) -> Tensor:
    """Returns z = s h tᵀ + α exp(−β (1 − h Fᵀ)) L of embeddings h (N, E) and texts t (C, E), both unit norm: (N, C) float32.

    F (n, E) are the keys of the cache, and L (n, C) its values, one-hot; s is `scale`. It is summed in float64, as `head_logits` is.
    Source: Zhang et al. 2022, arXiv 2111.03930.
    """
    rows = embeddings.double()
    votes = rows.new_zeros(1, len(text))
    for keys, values in zip(cache.keys.split(KEYS), cache.values.split(KEYS), strict=True):
        affinities = torch.exp(cache.beta * (rows @ keys.to(rows).T - 1))  # (N, E) @ (E, k) -> (N, k)
        votes = votes + affinities @ one_hot(values, len(text)).to(rows)  # (N, k) @ (k, C) -> (N, C)
    return (scale * (rows @ text.to(rows).T) + cache.alpha * votes).float()


def mean_and_std(features: Rows, rows: Tensor, block: int = 8192) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation (D,) of some rows, in one pass of float64 sums."""
    total = torch.zeros(2, features.width, dtype=torch.float64)
    shift = features.take(rows[:1]).double()  # near the mean: squares don't cancel
    for part in rows.split(block):
        values = features.take(part).double() - shift
        total += torch.stack([values.sum(0), values.square().sum(0)])
    mean, square = total / len(rows)
    return (mean + shift.squeeze(0)).float(), (square - mean.square()).clamp(min=0).sqrt().float()
