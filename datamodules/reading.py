"""Any image file as an 8-bit RGB picture, the way a person would see it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".bmp",
        ".gif",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".jp2",
        ".avif",
        ".tga",
    ]
)


def read_image(path: Path) -> Image.Image:
    """The picture in a file: EXIF rotation applied, transparency laid on white, 16-bit greys scaled to 8.

    Raises: OSError, SyntaxError or ValueError for what is not a whole image.
    """
    with Image.open(path) as file:
        return to_rgb(ImageOps.exif_transpose(file))


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB.

    Raises: ValueError for floating-point pixels, which have no stated range.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode == "F":
        raise ValueError("floating-point pixels have no stated range")
    if image.mode.startswith("I"):  # 16-bit grey, which PIL would clip to 8 bit
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
