"""Computes outputs from images by an encoder and its head, in one place for training, judging, export and attack."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from clip_ood.head import cache_logits, head_logits
from clip_ood.outputs import NOTHING, Inside, Outputs, Reference

Head = Callable[[Tensor], Tensor]  # features (N, D) -> logits (N, C)


class Encoder(Protocol):
    """The interface of what turns images into features; a `Backbone` has it."""

    def encode_image(self, images: Tensor) -> Tensor:
        """Returns features g (B, D) of images (B, 3, H, W)."""

    def encode_inside(self, images: Tensor, wanted: Inside) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Returns features g (B, D), those of layers (B, D_l) and tokens (B, P, E) of images, the last two by name."""

    def project(self, features: Tensor) -> Tensor | None:
        """Returns unit-norm embeddings h (B, E) of features; None without a joint space."""


def encode(encoder: Encoder, images: Tensor, wanted: Inside = NOTHING) -> Outputs:
    """Returns g (B, D) and, if the encoder has a joint space, h (B, E) of images (B, 3, H, W) that went through its transform.

    The outputs also have the layers and patch tokens that are `wanted`. The encoder runs under the autocast in which it is called,
    the projection in its own precision.
    """
    if wanted:
        features, layers, tokens = encoder.encode_inside(images, wanted)
    else:
        features, layers, tokens = encoder.encode_image(images), {}, {}
    with _own_precision(features):
        return Outputs(features, encoder.project(features), layers=layers or None, tokens=tokens or None)


def classify(outputs: Outputs, head: Head | None) -> Outputs:
    """Adds the logits z (N, C) that a head computes of the features (N, D); without a head, outputs stay as they are."""
    if head is None:
        return outputs
    with _own_precision(outputs.features):
        return replace(outputs, logits=head(outputs.features))


def linear(weight: Tensor | None, bias: Tensor | None) -> Head | None:
    """Returns the head z = W g + b of weight (C, D) and bias (C,), or None without them."""
    return None if weight is None else partial(head_logits, weight=weight, bias=bias)


def classify_by(reference: Reference, outputs: Outputs) -> Outputs:
    """Adds the logits (N, C) of the head that a reference describes, a linear one or a cache; without a head, outputs stay as they are."""
    if reference.cache is None:
        return classify(outputs, linear(reference.weight, reference.bias))
    with _own_precision(outputs.embeddings):
        given = (reference.text_embeddings, reference.logit_scale, reference.cache)
        return replace(outputs, logits=cache_logits(outputs.embeddings, *given))


class ReferenceHead(nn.Module):
    """The head that a reference describes, as a module: its tensors move to a device with what holds it. Outputs as in `classify_by`."""

    def __init__(self, reference: Reference) -> None:
        super().__init__()
        self.reference, cache = reference, reference.cache
        tensors = {name: getattr(reference, name) for name in ("weight", "bias", "text_embeddings")}
        tensors |= {} if cache is None else {"keys": cache.keys, "values": cache.values}
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, outputs: Outputs) -> Outputs:
        cache, tensors = self.reference.cache, dict(self.named_buffers())
        own = {} if cache is None else {"cache": replace(cache, keys=tensors.pop("keys"), values=tensors.pop("values"))}
        return classify_by(replace(self.reference, **tensors, **own), outputs)


def _own_precision(values: Tensor):
    device = values.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
