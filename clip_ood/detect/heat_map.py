"""A map of where an image is unlike the ID training images, in the image's own pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import grid_sample

from clip_ood.backbones.backbone import Preprocessing
from clip_ood.errors import UserError

UNFAMILIAR = (213, 94, 0)  # vermilion, which those who are blind to red or green tell from grey (Okabe and Ito, 2008)
OPACITY = 0.85  # of the least familiar place
UNSEEN = 0.6  # of white, over what the encoder does not see
SIDES = 256, 1024  # pixels of the longer side of a picture that is written, at least and at most
STRIP = 26  # pixels of the legend's height
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class HeatMap:
    """The scores of an image's patches: `patches` (h, w), and `pixels` (H, W), interpolated between the middles of patches, NaN where the
    encoder does not see the image; a higher score means more in-distribution. `detector` is the column of the score."""

    picture: Image.Image
    patches: Tensor
    pixels: Tensor
    detector: str

    def overlay(self, low: float | None = None, high: float | None = None) -> Image.Image:
        """Returns the picture in grey, the more vermilion the lower its score: fully at `low` or less, not at all from `high` on.

        They are the lowest and highest of the image's own patches, unless given. What the encoder does not see is pale.
        """
        low, high = self._range(low, high)
        grey = np.asarray(self.picture.convert("L"), float)[:, :, None]  # (H, W, 1)
        share = ((high - self.pixels) / max(high - low, 1e-12)).clamp(0, 1).numpy()[:, :, None]
        unseen = np.isnan(share)
        share = OPACITY * np.where(unseen, 0, share)
        coloured = (1 - share) * grey + share * np.array(UNFAMILIAR)
        coloured = np.where(unseen, (1 - UNSEEN) * coloured + UNSEEN * 255, coloured)
        return Image.fromarray(coloured.round().astype(np.uint8))

    def captioned(self, low: float | None = None, high: float | None = None) -> Image.Image:
        """Returns the overlay with a legend below, which has the numbers of both ends."""
        low, high = self._range(low, high)
        picture = _sized(self.overlay(low, high))
        whole = Image.new("RGB", (max(picture.width, SIDES[0]), picture.height + STRIP), "white")
        whole.paste(picture, ((whole.width - picture.width) // 2, 0))
        draw, font = ImageDraw.Draw(whole), ImageFont.load_default(13)
        ends = f"{low:.3g}", f"{high:.3g}"
        left, right = (12 + draw.textlength(end, font) for end in ends)
        middle = picture.height + STRIP // 2
        for x in range(int(left), whole.width - int(right)):
            share = OPACITY * (1 - (x - left) / max(1, whole.width - left - right))
            colour = tuple(round((1 - share) * 160 + share * each) for each in UNFAMILIAR)
            draw.line((x, middle - 5, x, middle + 5), colour)
        draw.text((6, middle), ends[0], "black", font, "lm")
        draw.text((whole.width - 6, middle), ends[1], "black", font, "rm")
        return whole

    def _range(self, low: float | None, high: float | None) -> tuple[float, float]:
        least, most = self.patches.min().item(), self.patches.max().item()
        return least if low is None else low, most if high is None else high


def heat_map(
    scores: Tensor, picture: Image.Image, transform: Callable, prepared: Preprocessing, detector: str
) -> HeatMap:
    """Returns the map of a picture by the scores (P,) of its patches, as an encoder with this transform sees them.

    Raises: UserError for patches that form no grid.
    """
    size = picture.size[::-1]
    patches = scores.reshape(grid(prepared.size, len(scores))).float().cpu()
    left, top, right, bottom = seen_by(transform, prepared, size)
    x = _relative(size[1], left, right)
    y = _relative(size[0], top, bottom)
    places = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=2)  # (H, W, 2): x and y
    pixels = grid_sample(
        patches[None, None], places[None].float(), mode="bilinear", padding_mode="border", align_corners=False
    )[0, 0]
    pixels[(places.abs() > 1).any(dim=2)] = torch.nan
    return HeatMap(picture, patches, pixels, detector)


def grid(size: tuple[int, int], count: int) -> tuple[int, int]:
    """Returns in how many rows and columns an input of `size` (H, W) has `count` patches, which are squares.

    >>> grid((224, 224), 196), grid((224, 448), 98)
    ((14, 14), (7, 14))
    """
    height, width = size
    rows = max(1, round((count * height / width) ** 0.5))
    if count % rows or abs(rows / height - count // rows / width) > 0.5 / min(size):
        raise UserError(f"{count} patches form no grid on an input of {height} × {width} pixels")
    return rows, count // rows


def seen_by(transform: Callable[[Image.Image], Tensor], prepared: Preprocessing, size: tuple[int, int]) -> Box:
    """Returns which part of a picture of `size` (H, W) an encoder's transform makes its input of: left, top, right, bottom, in pixels
    of the picture, which may lie outside it where the transform pads.

    It is found by a picture whose red and green tell the place; blue tells what is padding.
    """
    height, width = size
    places = np.full((height, width, 3), 255, np.uint8)
    places[:, :, 0] = (np.arange(width) * 255 / max(1, width - 1)).round()
    places[:, :, 1] = (np.arange(height) * 255 / max(1, height - 1)).round()[:, None]
    made = transform(Image.fromarray(places)).double()
    mean, std = (torch.tensor(each, dtype=torch.float64)[:, None, None] for each in (prepared.mean, prepared.std))
    red, green, blue = (made * std + mean) * 255
    inside = blue > 250
    left, right = _ends(red, inside, width)
    top, bottom = _ends(green.T, inside.T, height)
    return left, top, right, bottom


def _ends(values: Tensor, inside: Tensor, length: int) -> tuple[float, float]:
    """Returns where the first and last column (M, N) of an input begin and end in a picture of `length` pixels, by a line through them."""
    kept = inside.any(dim=0).nonzero()[:, 0]
    if length == 1 or len(kept) < 2:
        return 0.0, float(length)
    seen = torch.where(inside, values, 0).sum(dim=0)[kept] / inside.sum(dim=0)[kept]
    at = seen * (length - 1) / 255 + 0.5
    columns = kept.double()
    slope = ((columns - columns.mean()) * (at - at.mean())).sum() / ((columns - columns.mean()) ** 2).sum()
    first = at.mean() - slope * (columns.mean() + 0.5)
    return first.item(), (first + slope * values.shape[1]).item()


def _relative(length: int, first: float, last: float) -> Tensor:
    """Returns the middles of `length` pixels, −1 at `first` and 1 at `last`."""
    return 2 * (torch.arange(length, dtype=torch.float64) + 0.5 - first) / (last - first) - 1


def _sized(picture: Image.Image) -> Image.Image:
    longest = max(picture.size)
    factor = min(max(longest, SIDES[0]), SIDES[1]) / longest
    if factor == 1:
        return picture
    return picture.resize([max(1, round(side * factor)) for side in picture.size], Image.Resampling.BICUBIC)
