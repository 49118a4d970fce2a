"""Keeps a moving average of the weights, which is evaluated and saved by a fine-tuning run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class MovingAverage(WeightAveraging):
    """w̄ ← decay · w̄ + (1 − decay) · w after every optimizer step, from the first one's weights on, on `device`.

    Floating-point buffers (BatchNorm's statistics) are averaged too. Integers are copied, because a rounded average would change
    the indices that Swin keeps in a buffer.
    """

    def __init__(self, decay: float, device: torch.device) -> None:
        super().__init__(device=device, multi_avg_fn=moving_average(decay))

    def on_test_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self._average_model is not None:  # a run resumed after its last step never reaches on_train_end
            self._copy_average_to_current(module)


def moving_average(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """Returns the function that updates averaged tensors of one dtype by the current ones, in place."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], _: Tensor) -> None:
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - decay)
        else:
            torch._foreach_copy_(averaged, current)

    return update
