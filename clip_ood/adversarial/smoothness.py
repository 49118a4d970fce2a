"""How smooth a perturbation is."""

from __future__ import annotations

from torch import Tensor


def roughness(perturbation: Tensor) -> Tensor:
    """mean (∂x p)² + mean (∂y p)² of each p (B, 3, H, W), differences of neighbouring pixels: (B,).

    Source: the smoothness term of Adaloglou et al. 2024, arXiv 2303.05828.

    >>> import torch
    >>> roughness(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]]))
    tensor([1.])
    """
    across, down = perturbation.diff(dim=3), perturbation.diff(dim=2)
    return across.square().mean(dim=(1, 2, 3)) + down.square().mean(dim=(1, 2, 3))


def total_variation(perturbation: Tensor) -> Tensor:
    """Σ |∂x p| + Σ |∂y p| of each p (B, 3, H, W), anisotropic: (B,)."""
    return perturbation.diff(dim=3).abs().sum(dim=(1, 2, 3)) + perturbation.diff(dim=2).abs().sum(dim=(1, 2, 3))
