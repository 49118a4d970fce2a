"""Makes corrupted versions of an image in five severities, a shift that grows step by step.

| corruption     | figure                                        | severity 1 … 5                                      |
|----------------|-----------------------------------------------|-----------------------------------------------------|
| gaussian_noise | standard deviation (white is 1)               | 0.08, 0.12, 0.18, 0.26, 0.38                        |
| shot_noise     | photons at white                              | 60, 25, 12, 5, 3                                    |
| gaussian_blur  | standard deviation in pixels                  | 1, 2, 3, 4, 6                                       |
| zoom_blur      | largest zoom                                  | 1.10, 1.15, 1.20, 1.25, 1.30                        |
| brightness     | added to V of HSV (1 at most)                 | 0.1, 0.2, 0.3, 0.4, 0.5                             |
| contrast       | factor of the distance to each channel's mean | 0.4, 0.3, 0.2, 0.1, 0.05                            |
| saturate       | (a, b) of S ← a S + b in HSV                  | (1.5, 0), (2, 0), (3.5, 0.05), (5, 0.1), (20, 0.2)  |
| jpeg           | quality                                       | 25, 18, 15, 10, 7                                   |
| pixelate       | share of the side that is kept                | 0.6, 0.5, 0.4, 0.3, 0.25                            |

The figures are those of ImageNet-C (Hendrycks and Dietterich 2019, arXiv 1903.12261, and its code), with two exceptions.
Saturate has ImageNet-C's severities 3, 4 and 5 at 2, 4 and 5, because its 1 and 2 remove colour and so are in no order.
Zoom blur is the mean of 12 copies with zooms spaced evenly from 1 to ImageNet-C's largest zoom (rounded); ImageNet-C takes 11 to
16 copies.

The figures are for images of 224 pixels: noise on a picture of 3000 would be averaged out by the encoder's own resizing.
The shorter side is therefore resized to 224 first, whatever it was. (ImageNet-C resizes it to 256 and takes a crop of 224; here
cropping is left to the encoder.) For an encoder of more than 224 pixels, this loss of detail is part of the corruption. Corrupted
images are not stored in between (ImageNet-C stores them as JPEG of quality 85).
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps

VERSION = 1  # of the functions below: with another number, the store holds other features
SIDE = 224
COPIES = 12  # for a zoom blur


@dataclass(frozen=True)
class Corruption:
    """A corruption, named as in the table above, at a severity from 1 to 5."""

    name: str
    severity: int

    @property
    def key(self) -> tuple[str, int, int]:
        """What distinguishes its images from others in the feature store."""
        return self.name, self.severity, VERSION

    def __call__(self, image: Image.Image, name: str) -> Image.Image:
        """Returns the corrupted version of an RGB image, with a shorter side of 224 pixels.

        Noise depends only on the corruption, its severity and the image's `name`: it is the same in any order and process.
        """
        corrupt, figures = CORRUPTIONS[self.name]
        seed = hashlib.blake2b(
            f"{self.name}:{self.severity}:{name}".encode("utf-8", "surrogateescape"), digest_size=8
        ).digest()
        noise = np.random.default_rng(int.from_bytes(seed, "big"))
        return corrupt(ImageOps.cover(image, (SIDE, SIDE)), figures[self.severity - 1], noise)


def _gaussian_noise(image: Image.Image, std: float, noise: np.random.Generator) -> Image.Image:
    pixels = _pixels(image)
    return _image(pixels + noise.normal(scale=std, size=pixels.shape))


def _shot_noise(image: Image.Image, photons: float, noise: np.random.Generator) -> Image.Image:
    return _image(noise.poisson(_pixels(image) * photons) / photons)


def _gaussian_blur(image: Image.Image, std: float, _: Any) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(std))


def _zoom_blur(image: Image.Image, largest: float, _: Any) -> Image.Image:
    width, height = image.size
    total = np.zeros((height, width, 3))
    for zoom in np.linspace(1, largest, COPIES):
        x, y = width * (1 - 1 / zoom) / 2, height * (1 - 1 / zoom) / 2
        middle = (x, y, width - x, height - y)
        total += _pixels(image.resize(image.size, Image.Resampling.BILINEAR, box=middle))
    return _image(total / COPIES)


def _brightness(image: Image.Image, added: float, _: Any) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    return _from_hsv(hue, saturation, value.point(lambda level: min(level + round(255 * added), 255)))


def _contrast(image: Image.Image, factor: float, _: Any) -> Image.Image:
    pixels = _pixels(image)
    mean = pixels.mean(axis=(0, 1))
    return _image(mean + factor * (pixels - mean))


def _saturate(image: Image.Image, figures: tuple[float, float], _: Any) -> Image.Image:
    factor, added = figures
    hue, saturation, value = image.convert("HSV").split()
    return _from_hsv(hue, saturation.point(lambda level: min(round(factor * level + 255 * added), 255)), value)


def _jpeg(image: Image.Image, quality: int, _: Any) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def _pixelate(image: Image.Image, share: float, _: Any) -> Image.Image:
    width, height = image.size
    coarse = image.resize((int(share * width), int(share * height)), Image.Resampling.BOX)
    return coarse.resize(image.size, Image.Resampling.BOX)


CORRUPTIONS = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (_shot_noise, (60, 25, 12, 5, 3)),
    "gaussian_blur": (_gaussian_blur, (1, 2, 3, 4, 6)),
    "zoom_blur": (_zoom_blur, (1.10, 1.15, 1.20, 1.25, 1.30)),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "saturate": (_saturate, ((1.5, 0), (2, 0), (3.5, 0.05), (5, 0.1), (20, 0.2))),
    "jpeg": (_jpeg, (25, 18, 15, 10, 7)),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
}


def _pixels(image: Image.Image) -> np.ndarray:
    """Returns the pixels (H, W, 3) from 0 to 1."""
    return np.asarray(image) / 255


def _image(pixels: np.ndarray) -> Image.Image:
    """Returns the image of (H, W, 3) pixels, clipped to 0 … 1."""
    return Image.fromarray((255 * pixels.clip(0, 1)).round().astype(np.uint8))


def _from_hsv(*bands: Image.Image) -> Image.Image:
    return Image.merge("HSV", bands).convert("RGB")
