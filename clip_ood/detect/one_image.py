"""Takes an image in any of the forms in which Python has one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO, IOBase
from pathlib import Path
from typing import BinaryIO

import torch
from PIL import Image
from torch import Tensor

from clip_ood.data.readers.objects import image_at
from clip_ood.errors import UserError
from clip_ood.features.identity import SIZE, identity_of
from clip_ood.files.pictures import as_picture, decode, read_bytes
from clip_ood.files.remote.address import is_address, place_at
from clip_ood.files.remote.ahead import ahead

OneImage = str | Path | Image.Image | bytes | BinaryIO | Tensor


def picture_of(image: OneImage) -> tuple[Image.Image, bytes]:
    """Returns the picture, and the identity of its file's content, zeros if there is no file."""
    if isinstance(image, str) and is_address(image):
        return picture_of(image_at(place_at(image)).read())
    if isinstance(image, str | Path):
        with BytesIO(read_bytes(Path(image))) as file:
            return decode(file), identity_of(file.getvalue())
    if isinstance(image, bytes):
        return decode(BytesIO(image)), identity_of(image)
    return _without_file(image), bytes(SIZE)


def pictures_of(images: Sequence[OneImage]) -> Iterator[tuple[Image.Image, bytes]]:
    """Returns what `picture_of` does, of several images; where there are addresses among them, several are read at the same time."""
    is_remote = any(isinstance(each, str) and is_address(each) for each in images)
    return ahead(picture_of, images) if is_remote else map(picture_of, images)


def name_of(image: OneImage) -> str | None:
    """Returns the path or address of an image, as it may be shown; None for what has none."""
    if isinstance(image, str) and is_address(image):
        return str(place_at(image))
    return str(image) if isinstance(image, str | Path) else None


def _without_file(image: OneImage) -> Image.Image:
    if isinstance(image, Image.Image):
        return as_picture(image)
    if isinstance(image, IOBase):
        return decode(image)
    if not isinstance(image, Tensor):
        raise TypeError(
            "An image is a path, a PIL image, the bytes of a file, an open file or a tensor (3, H, W), not a "
            f"{type(image).__name__}; of an array: PIL.Image.fromarray(array)"
        )
    return _of_tensor(image)


def _of_tensor(image: Tensor) -> Image.Image:
    if image.ndim != 3 or len(image) != 3 or not image.numel():
        raise UserError(f"An image as a tensor has the shape (3, H, W), not {tuple(image.shape)}")
    if image.is_floating_point():
        if not (image.min() >= 0 and image.max() <= 1):
            raise UserError(
                f"An image of floats has pixels in [0, 1], not {image.min():g} … {image.max():g}: give it as it is before the "
                "encoder's normalisation, or as uint8"
            )
        image = image.double().mul(255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise UserError(f"An image as a tensor is uint8, or floats in [0, 1], not {image.dtype}")
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
