"""How smooth a perturbation is."""

from __future__ import annotations

import torch
from torch import Tensor


def roughness(perturbation: Tensor) -> Tensor:
    """mean (∂x p)² + mean (∂y p)² of each p (B, 3, H, W), differences of neighbouring pixels: (B,).

    Source: the smoothness term of Adaloglou et al. 2024, arXiv 2303.05828.

    >>> roughness(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]]))
    tensor([1.])
    """
    across, down = perturbation.diff(dim=3), perturbation.diff(dim=2)
    return across.square().mean(dim=(1, 2, 3)) + down.square().mean(dim=(1, 2, 3))


def roughness_gradient(perturbation: Tensor) -> Tensor:
    """The gradient of each p's `roughness` with respect to it, (B, 3, H, W); by hand, in fewer passes than autograd takes."""
    gradient = torch.zeros_like(perturbation)
    for dim in (2, 3):
        steps, size = perturbation.diff(dim=dim), perturbation.shape[dim]
        steps *= 2 / steps[0].numel()
        gradient.narrow(dim, 1, size - 1).add_(steps)
        gradient.narrow(dim, 0, size - 1).sub_(steps)
    return gradient


def total_variation(perturbation: Tensor) -> Tensor:
    """Σ |∂x p| + Σ |∂y p| of each p (B, 3, H, W), anisotropic: (B,)."""
    return perturbation.diff(dim=3).abs().sum(dim=(1, 2, 3)) + perturbation.diff(dim=2).abs().sum(dim=(1, 2, 3))
