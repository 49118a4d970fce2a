"""Reads the images of an attack as the encoder sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize
from torchvision.transforms.functional import center_crop, normalize, to_pil_image

from clip_ood.backbones.backbone import Backbone
from clip_ood.errors import UserError
from clip_ood.outputs import Outputs


@dataclass(frozen=True)
class PairBatch:
    """Pixels (B, 3, H, W) in [0, 1] of the pairs at `positions`, for the attack called `variant`."""

    pixels: Tensor
    positions: range
    variant: str
    last: ClassVar[bool] = True  # of its part, which it is alone


def pixels_of(backbone: Backbone) -> Callable[[Image.Image], Tensor]:
    """Returns the part of an encoder's transform before its last step, which takes pixels in [0, 1] to mean 0 and deviation 1.

    If it resizes to S and then crops, the square of S × S is kept: the encoder crops the rest by itself, now
    and when it reads the saved image, which it then sees exactly as it was attacked.
    Raises: ValueError for a transform that ends otherwise, or changes a saved image.
    """
    *steps, last = backbone.transform.transforms
    if not isinstance(last, Normalize):
        raise UserError(
            f"An attack needs an encoder whose transform ends with Normalize, not with {last}: take open_clip's"
        )
    side = min((step.size for step in steps if isinstance(step, Resize) and isinstance(step.size, int)), default=0)
    cut = [isinstance(step, CenterCrop) and min(step.size) < side for step in steps]
    pixels = Compose([CenterCrop(side) if wide else step for step, wide in zip(steps, cut, strict=True)])
    _check_seen_again(backbone, pixels)
    return pixels


def cut_out(pixels: Tensor, backbone: Backbone) -> Tensor:
    """Returns the middle (B, 3, H, W) of pixels that the encoder sees, with mean 0 and deviation 1."""
    prepared = backbone.preprocessing
    return normalize(center_crop(pixels, list(prepared.size)), prepared.mean, prepared.std)


def _check_seen_again(backbone: Backbone, pixels: Callable[[Image.Image], Tensor]) -> None:
    drawn = torch.randint(256, (301, 400, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    saved = to_pil_image(pixels(Image.fromarray(drawn.numpy())))
    seen, attacked = backbone.transform(saved), cut_out(pixels(saved)[None], backbone)[0]
    if seen.shape != attacked.shape or not torch.allclose(seen, attacked, atol=1e-5):
        raise UserError(
            f"An attack needs an encoder that sees a saved image as it was attacked, and {backbone.transform} changes it: "
            "take one that resizes and cuts out the middle"
        )


@dataclass(frozen=True)
class Moved:
    """The result of an attack on B images: pixels (B, 3, H, W) uint8 before, after and at the steps looked at; figures (B,) of
    the pairs; and the encoder's outputs for the pixels before they were rounded.
    """

    before: Tensor
    after: Tensor
    steps: dict[int, Tensor]
    figures: dict[str, Tensor]
    exact: Outputs
