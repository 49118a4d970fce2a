"""The training images of a run as small pictures, by their paths."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from clip_ood.data.benchmark import Benchmark
from clip_ood.report.galleries import Maps, pictures_of


@dataclass(frozen=True)
class Picture:
    """One image by its path: its thumbnail as a data URI, or the reason why there is none, and its heat map as a data URI."""

    path: str
    picture: str | None
    missing: str | None
    heat: str | None = None


class Pictures:
    """The training images of a run, which are read when they are shown."""

    def __init__(self, benchmark: Benchmark, maps: Maps | None = None) -> None:
        self.benchmark, self.maps = benchmark, maps
        self._found: dict[str, Picture] = {}

    @cached_property
    def _places(self) -> dict[str, int]:
        part = self.benchmark.parts["train"]
        names = self.benchmark.images[part.images].names
        return {names[row]: row for row in part.rows}

    def at(self, path: str) -> Picture:
        """Returns the picture of an image that a list of the run names."""
        if path not in self._found:
            try:
                key = self.benchmark.parts["train"].images
                picture, heat = pictures_of(self.benchmark.images[key], self._places[path], key, self.maps)
                self._found[path] = Picture(path, picture, None, heat)
            except KeyError:
                self._found[path] = Picture(path, None, "the image set does not list it any more")
            except (OSError, ValueError) as error:  # it was removed or damaged since it was scored
                self._found[path] = Picture(path, None, str(error))
        return self._found[path]

    def some(self, paths: Iterable[str], count: int) -> list[Picture]:
        """Returns the first `count` of some pictures."""
        return [self.at(path) for path in islice(paths, count)]
