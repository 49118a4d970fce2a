"""An encoder and the head that stands on it: images → outputs, in one place for training, judging, export and attack."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from clip_ood.head import head_logits
from clip_ood.outputs import Outputs, Reference

Head = Callable[[Tensor], Tensor]  # features (N, D) -> logits (N, C)


class Encoder(Protocol):
    """What turns images into features; a `Backbone` is one."""

    def encode_image(self, images: Tensor) -> Tensor:
        """Features g (B, D) of images (B, 3, H, W)."""

    def project(self, features: Tensor) -> Tensor | None:
        """Unit-norm embeddings h (B, E) of features; None without a joint space."""


def encode(encoder: Encoder, images: Tensor) -> Outputs:
    """g (B, D) and, where the encoder has a joint space, h (B, E) of images (B, 3, H, W) that went through its transform.

    The encoder runs under the autocast that it is called in, the projection in its own precision.
    """
    features = encoder.encode_image(images)
    with _own_precision(features):
        return Outputs(features, encoder.project(features))


def classify(outputs: Outputs, head: Head | None) -> Outputs:
    """The same outputs with the logits z (N, C) that a head gives of their features (N, D); as they are without a head."""
    if head is None:
        return outputs
    with _own_precision(outputs.features):
        return replace(outputs, logits=head(outputs.features))


def linear(weight: Tensor | None, bias: Tensor | None) -> Head | None:
    """The head z = W g + b of weight (C, D) and bias (C,); None without them."""
    return None if weight is None else partial(head_logits, weight=weight, bias=bias)


def head_of(reference: Reference) -> Head | None:
    """The head that detectors know, where it is a linear one."""
    return linear(reference.weight, reference.bias)


def _own_precision(values: Tensor):
    device = values.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
