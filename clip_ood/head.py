"""A head of one linear layer on standardised features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clip_ood.features.rows import Rows


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
    return torch.addmm(bias.double(), features.double(), weight.double().T).float()


def mean_and_std(features: Rows, rows: Tensor, block: int = 8192) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation (D,) of some rows, in one pass of float64 sums."""
    total = torch.zeros(2, features.width, dtype=torch.float64)
    shift = features.take(rows[:1]).double()  # near the mean: squares don't cancel
    for part in rows.split(block):
        values = features.take(part).double() - shift
        total += torch.stack([values.sum(0), values.square().sum(0)])
    mean, square = total / len(rows)
    return (mean + shift.squeeze(0)).float(), (square - mean.square()).clamp(min=0).sqrt().float()
