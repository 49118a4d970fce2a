"""Shows the images that a detector judges wrongly, those closest to its threshold and those furthest from it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from clip_ood.data.benchmark import Benchmark
from clip_ood.data.image_list import ImageList
from clip_ood.runs.scores import ScoredSet

SHOWN = 8  # images in a row
SIDE = 160  # pixels of a thumbnail's longer side


class Maps(Protocol):
    """The maps of where images are unlike the bank, by a `detector`, with one scale for all of a page."""

    detector: str

    def overlay(self, images: str, row: int, picture: Image.Image) -> Image.Image | None:
        """Returns the overlay on the picture of the image at a row of the image set of that key, or None if its patches are not stored."""


@dataclass(frozen=True)
class Tile:
    """One image: its thumbnail as a data URI, or the reason why there is none, its score, its name, and its heat map as a data URI."""

    picture: str | None
    missing: str | None
    score: float
    set: str
    path: str
    label: str | None
    prediction: str | None
    heat: str | None = None


@dataclass(frozen=True)
class Gallery:
    """The images on the wrong side of the threshold and their number: those closest to it and, not shown twice, those furthest."""

    wrong: int
    total: int
    closest: list[Tile]
    furthest: list[Tile]


def accepted_ood(
    sets: list[ScoredSet], detector: str, threshold: float, benchmark: Benchmark, maps: Maps | None = None
) -> Gallery:
    """Returns OOD images that score at least the threshold."""
    return _gallery([each for each in sets if each.role == "ood"], detector, threshold, benchmark, maps, above=True)


def rejected_id(
    sets: list[ScoredSet], detector: str, threshold: float, benchmark: Benchmark, maps: Maps | None = None
) -> Gallery:
    """Returns ID test images that score below the threshold."""
    return _gallery([each for each in sets if each.role == "id"], detector, threshold, benchmark, maps, above=False)


def _gallery(
    sets: list[ScoredSet], detector: str, threshold: float, benchmark: Benchmark, maps: Maps | None, above: bool
) -> Gallery:
    found = []
    for each in sets:
        scores = each.scores[detector]
        wrong = scores >= threshold if above else scores < threshold
        found += [(abs(scores[row] - threshold), each, row) for row in np.flatnonzero(wrong)]
    found.sort(key=lambda item: item[0])
    closest, rest = found[:SHOWN], found[SHOWN:]
    tiles = [
        [_tile(each, row, detector, benchmark, maps) for _, each, row in chosen]
        for chosen in (closest, rest[::-1][:SHOWN])
    ]
    return Gallery(len(found), sum(map(len, sets)), *tiles)


def _tile(each: ScoredSet, row: int, detector: str, benchmark: Benchmark, maps: Maps | None) -> Tile:
    picture, missing, heat = None, None, None
    try:
        images, place = _found(benchmark, each, row)
        picture, heat = pictures_of(benchmark.images[images], place, images, maps)
    except (OSError, ValueError) as error:  # it was removed or damaged since it was scored, and the tile says so
        missing = str(error)
    about = (each.paths[row], each.labels[row], each.predictions[row])
    return Tile(picture, missing, float(each.scores[detector][row]), each.name, *about, heat)


def _found(benchmark: Benchmark, each: ScoredSet, row: int) -> tuple[str, int]:
    """Returns the key of an image's set, and its place there."""
    part = benchmark.reported[each.name]
    names = benchmark.images[part.images].names
    place = next((place for place in part.rows if names[place] == each.paths[row]), None)
    if place is None:
        raise FileNotFoundError("the image set does not list it any more")
    return part.images, place


def pictures_of(images: ImageList, place: int, key: str, maps: Maps | None) -> tuple[str, str | None]:
    """Returns a small picture of an image of the set of that key, and its heat map if there is one, as data URIs.

    Raises OSError and UnreadableImage for an image that cannot be read.
    """
    image = images.read(place)
    heat = None if maps is None else maps.overlay(key, place, image)
    return _thumbnail(image), None if heat is None else _thumbnail(heat)


def thumbnail(images: ImageList, place: int) -> str:
    """Returns a small picture of an image as a data URI. Raises OSError and UnreadableImage for one that cannot be read."""
    return _thumbnail(images.read(place))


def _thumbnail(image: Image.Image) -> str:
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
