"""Shows the images that a detector judges wrongly, those closest to its threshold and those furthest from it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np

from clip_ood.data.benchmark import Benchmark
from clip_ood.data.image_list import ImageList
from clip_ood.runs.scores import ScoredSet

SHOWN = 8  # images in a row
SIDE = 160  # pixels of a thumbnail's longer side


@dataclass(frozen=True)
class Tile:
    """One image: its thumbnail as a data URI, or the reason why there is none, its score, and its name."""

    picture: str | None
    missing: str | None
    score: float
    set: str
    path: str
    label: str | None
    prediction: str | None


@dataclass(frozen=True)
class Gallery:
    """The images on the wrong side of the threshold and their number: those closest to it and, not shown twice, those furthest."""

    wrong: int
    total: int
    closest: list[Tile]
    furthest: list[Tile]


def accepted_ood(sets: list[ScoredSet], detector: str, threshold: float, benchmark: Benchmark) -> Gallery:
    """Returns OOD images that score at least the threshold."""
    return _gallery([each for each in sets if each.role == "ood"], detector, threshold, benchmark, above=True)


def rejected_id(sets: list[ScoredSet], detector: str, threshold: float, benchmark: Benchmark) -> Gallery:
    """Returns ID test images that score below the threshold."""
    return _gallery([each for each in sets if each.role == "id"], detector, threshold, benchmark, above=False)


def _gallery(sets: list[ScoredSet], detector: str, threshold: float, benchmark: Benchmark, above: bool) -> Gallery:
    found = []
    for each in sets:
        scores = each.scores[detector]
        wrong = scores >= threshold if above else scores < threshold
        found += [(abs(scores[row] - threshold), each, row) for row in np.flatnonzero(wrong)]
    found.sort(key=lambda item: item[0])
    closest, rest = found[:SHOWN], found[SHOWN:]
    tiles = [
        [_tile(each, row, detector, benchmark) for _, each, row in chosen] for chosen in (closest, rest[::-1][:SHOWN])
    ]
    return Gallery(len(found), sum(map(len, sets)), *tiles)


def _tile(each: ScoredSet, row: int, detector: str, benchmark: Benchmark) -> Tile:
    picture, missing = None, None
    try:
        picture = _thumbnail(benchmark, each, row)
    except (OSError, ValueError) as error:  # it was removed or damaged since it was scored, and the tile says so
        missing = str(error)
    about = (each.paths[row], each.labels[row], each.predictions[row])
    return Tile(picture, missing, float(each.scores[detector][row]), each.name, *about)


def _thumbnail(benchmark: Benchmark, each: ScoredSet, row: int) -> str:
    part = benchmark.reported[each.name]
    images = benchmark.images[part.images]
    place = next((place for place in part.rows if images.names[place] == each.paths[row]), None)
    if place is None:
        raise FileNotFoundError("the image set does not list it any more")
    return thumbnail(images, place)


def thumbnail(images: ImageList, place: int) -> str:
    """Returns a small picture of an image as a data URI. Raises OSError and UnreadableImage for one that cannot be read."""
    image = images.read(place)
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
