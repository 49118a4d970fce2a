"""Any image file as an 8-bit RGB picture, the way a person would see it."""

from __future__ import annotations

from errno import EINVAL
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
from PIL import ExifTags, Image, features

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


TURNS = {  # EXIF orientation -> what puts the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


LONGEST = 200  # times the shorter side: resized to an encoder's input, a thinner picture would take gigabytes


class UnreadableImage(ValueError):
    """What is not a whole image; the message begins with the decoder's own error."""


def read_image(path: Path) -> Image.Image:
    """The picture in a file: see `decode`.

    Raises: UnreadableImage for what is not a whole image, OSError for a file that cannot be had (gone, not permitted).
    """
    with path.open("rb") as file:
        return decode(file)


def decode(file: BinaryIO) -> Image.Image:
    """The picture in an open file, of an animation the first: EXIF rotation applied, transparency laid on white, 16-bit
    greys scaled to 8.

    Raises: UnreadableImage for what is not a whole image, OSError for a file that cannot be read.
    """
    try:
        with Image.open(file, formats=_formats()) as image:
            if max(image.size) > LONGEST * min(image.size):
                raise UnreadableImage(
                    f"{image.width} × {image.height} pixels: one side is over {LONGEST} times the other"
                )
            image.load()  # not by name: Pillow would map a TIFF into memory, and scrambles rotated ones
            return to_rgb(_upright(image))
    except Exception as error:  # at damaged files decoders raise anything, without errno unless sought beyond the end
        if isinstance(error, UnreadableImage | MemoryError) or getattr(error, "errno", None) not in (None, EINVAL):
            raise
        told = str(error).replace(f" {file!r}", "")  # not where in memory its bytes lay
        raise UnreadableImage(f"{type(error).__name__}: {told}") from error


@cache
def _formats() -> list[str]:
    """Pillow's decoders of what `SUFFIXES` stand for: others start programs, as Ghostscript for an EPS called x.jpg."""
    Image.init()
    known = ("JPEG", "MPO", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")
    return [name for name in known if name in Image.OPEN]


@cache
def decoders() -> str:
    """What decides which images can be read here: Pillow's version, its decoders and the libraries behind them."""
    return f"Pillow {PIL.__version__} with {', '.join([*_formats(), *features.get_supported_codecs()])}"


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF block says; as it is where that block is damaged, as viewers show it."""
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # a damaged block raises anything, and the pixels are whole
        turn = None
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB.

    Raises: UnreadableImage for floating-point pixels, which have no stated range.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels have no stated range")
    if image.mode.startswith("I"):  # 16-bit grey, which PIL would clip to 8 bit
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
