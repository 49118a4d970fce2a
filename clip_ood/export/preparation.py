"""Describes how an encoder's transform resizes, as numbers that are stored in an exported graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import Resize

from clip_ood.backbones.backbone import Preprocessing
from clip_ood.files.pictures import pixels

SHAPES = ((500, 375), (375, 500), (300, 300), (1001, 61), (17, 40), (640, 333))  # of the pictures that are tried


def resize_of(transform: Callable[[Image.Image], Tensor], prepared: Preprocessing) -> int | list[int] | None:
    """Returns the argument `resize` of `clip_ood.files.pictures.fit` that gives the pixels of an encoder's transform.

    It is the length of the shorter side, or [height, width]. Both are tried on pictures of several shapes; it is None if neither
    fits.
    """
    found = next((step for step in getattr(transform, "transforms", ()) if isinstance(step, Resize)), None)
    if found is None:
        return None
    size = found.size if isinstance(found.size, int) else [int(side) for side in found.size]
    resize = size[0] if isinstance(size, list) and len(size) == 1 else size
    return resize if all(_same(picture, transform, prepared, resize) for picture in pictures()) else None


def pictures() -> list[Image.Image]:
    """Returns generated pictures of `SHAPES`, smooth and noisy."""
    generator = torch.Generator().manual_seed(0)
    return [
        Image.fromarray(torch.randint(256, (side, side, 3), generator=generator, dtype=torch.uint8).numpy()).resize(
            shape
        )
        for side, shape in zip((3, 60, 9, 30, 40, 200), SHAPES, strict=True)
    ]


def _same(
    picture: Image.Image, transform: Callable[[Image.Image], Tensor], prepared: Preprocessing, resize: int | list[int]
) -> bool:
    about = {"resize": resize, "size": list(prepared.size), "interpolation": prepared.interpolation}
    try:
        shipped = torch.from_numpy(pixels(picture, about))[0]
    except (KeyError, ValueError):  # Pillow does not resize in this way
        return False
    mean, std = (torch.tensor(each)[:, None, None] for each in (prepared.mean, prepared.std))
    expected = transform(picture)
    return expected.shape == shipped.shape and torch.allclose((shipped - mean) / std, expected, rtol=0, atol=1e-5)
