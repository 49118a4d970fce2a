"""Runs Adam on the pixels of images to find a perturbation that lowers a loss of each image, smooth and within a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clip_ood.adversarial.budget import Budget
from clip_ood.adversarial.smoothness import add_roughness_gradient
from clip_ood.errors import UserError


@dataclass(frozen=True)
class Attack:
    """Starts at p₀ ~ N(0, noise²), then makes `steps` steps of Adam(lr) on loss(y + p) + smoothness · roughness(p), after each of which p is
    brought into the budget and y + p into [0, 1]; with `sign`, PGD instead: p ← p − lr · sign of the gradient.

    The paper's: 250 steps, lr 1e-3, noise 1e-3, smoothness 5e3 (smooth) or 0 (patchy), no budget (Adaloglou et al. 2024,
    arXiv 2303.05828). PGD: Madry et al. 2018, arXiv 1706.06083.
    """

    steps: int = 250
    lr: float = 1e-3
    smoothness: float = 5e3
    noise: float = 1e-3
    sign: bool = False
    budget: Budget | None = None


def start(images: Tensor, attack: Attack, seeds: Sequence[int]) -> Tensor:
    """Returns y + p₀ of images y (B, 3, H, W); each p₀ is drawn from its own seed, so that batches and devices change nothing."""
    shape = images.shape[1:]
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    pixels = images + attack.noise * torch.stack(noise).to(images)
    _make_valid(pixels, images, attack.budget)
    return pixels


def perturb(
    loss: Callable[[Tensor], Tensor],
    images: Tensor,
    attack: Attack,
    seeds: Sequence[int],
    watch: Callable[[int, Tensor], None] = lambda step, pixels: None,
) -> Tensor:
    """Returns perturbed images y + p (B, 3, H, W), with pixels in [0, 1].

    loss: (B, 3, H, W) -> (B,), a value for each image, which must not depend on the batch's other images; watch is given the
    pixels after each step (0: before the first), which the next one changes in place. Weights take no gradient if they do
    not require one. Raises: ValueError if the loss has no gradient with respect to the pixels, and if either is not
    finite.
    """
    with torch.inference_mode(False), torch.enable_grad():
        images = images.clone() if images.is_inference() else images
        pixels = start(images, attack, seeds).requires_grad_()
        adam = torch.optim.Adam([pixels], lr=attack.lr, fused=True)  # a step on y + p is one on p
        watch(0, pixels.detach())
        for step in range(1, attack.steps + 1):
            pixels.grad = _gradient(loss(pixels), pixels)
            with torch.no_grad():
                if attack.smoothness:
                    add_roughness_gradient(pixels.grad, pixels - images, attack.smoothness)
                if attack.sign:
                    pixels -= attack.lr * pixels.grad.sign()
                else:
                    adam.step()
                _make_valid(pixels, images, attack.budget)
            watch(step, pixels.detach())
        return pixels.detach()


def quantised(pixels: Tensor) -> Tensor:
    """Returns pixels in [0, 1] as an 8-bit image holds them."""
    return (255 * pixels).round() / 255


def _gradient(losses: Tensor, pixels: Tensor) -> Tensor:
    if not losses.requires_grad:
        raise UserError("attack: the loss has no gradient with respect to the pixels; take another score or encoder")
    (gradient,) = torch.autograd.grad(losses.sum(), pixels)
    if not (losses.sum() + gradient.sum()).isfinite():
        raise UserError("attack: the loss or its gradient is not finite; lower lr or smoothness, or take fp32")
    if gradient.stride() == pixels.stride():
        return gradient
    return torch.empty_like(pixels).copy_(gradient)  # fused Adam assumes that both have the same memory layout


def _make_valid(pixels: Tensor, images: Tensor, budget: Budget | None) -> None:
    if budget is not None:
        pixels.copy_(images + budget.project(pixels - images))
    pixels.clamp_(0, 1)
