"""Shows the most suspect images of a run beside their nearest ones, the groups that lie apart, and the copies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path

from clip_ood.data.benchmark import Benchmark
from clip_ood.folder.files import read_groups, read_suspects
from clip_ood.folder.suspects import Suspect
from clip_ood.report.galleries import thumbnail
from clip_ood.runs.run_folder import GROUPS, SUSPECTS

SHOWN = 16  # suspects
MEMBERS = 8  # of a group
LISTED = 6  # groups, and groups of copies


@dataclass(frozen=True)
class Picture:
    """One image by its path: its thumbnail as a data URI, or the reason why there is none."""

    path: str
    picture: str | None
    missing: str | None


@dataclass(frozen=True)
class Shown:
    """A suspect, its picture, and that of its nearest image, if there is one."""

    suspect: Suspect
    own: Picture
    near: Picture | None


@dataclass(frozen=True)
class ShownGroup:
    """A group that lies apart: the number of its images, how far apart it lies, and some of its images."""

    images: int
    apart: float
    some: list[Picture]


@dataclass(frozen=True)
class ShownCopies:
    """A group of copies: the number of its images, and some of them."""

    images: int
    some: list[Picture]


@dataclass(frozen=True)
class Answer:
    """What a page shows of a folder of `images` images: of the suspects in a group that lies apart only the first."""

    images: int
    suspects: list[Shown]
    groups: list[ShownGroup]
    copies: list[ShownCopies]
    more_groups: int = 0
    more_copies: int = 0

    @property
    def sizes(self) -> dict[int, int]:
        """Returns the number of images of each group that is shown, by the group's number."""
        return {number: each.images for number, each in enumerate(self.groups, start=1)}


def answer(folder: Path, benchmark: Benchmark) -> Answer | None:
    """Reads suspects.csv and groups.csv of a run; None if it has none."""
    if not (folder / SUSPECTS).is_file():
        return None
    pictures, count, first, met = _Pictures(benchmark), 0, [], set()
    copies: dict[str, list[str]] = {}
    for each in read_suspects(folder / SUSPECTS):
        count += 1
        if len(first) < SHOWN and each.group not in met:
            met |= {each.group} - {None}
            near = None if each.nearest is None else pictures.at(each.nearest)
            first.append(Shown(each, pictures.at(each.path), near))
        if each.copies:
            copies.setdefault(each.copy_of or each.path, []).append(each.path)
    groups = [
        ShownGroup(members[0].images, members[0].apart, pictures.some(each.path for each in members))
        for members in (list(of) for _, of in groupby(read_groups(folder / GROUPS), key=lambda each: each.group))
    ]
    alike = [ShownCopies(len(paths), pictures.some(sorted(paths))) for paths in islice(copies.values(), LISTED)]
    return Answer(count, first, groups[:LISTED], alike, max(0, len(groups) - LISTED), max(0, len(copies) - LISTED))


@dataclass(frozen=True)
class _Pictures:
    """The training images of a run, which are read when they are shown."""

    benchmark: Benchmark
    _found: dict[str, Picture] = field(default_factory=dict)

    @cached_property
    def _places(self) -> dict[str, int]:
        part = self.benchmark.parts["train"]
        names = self.benchmark.images[part.images].names
        return {names[row]: row for row in part.rows}

    def at(self, path: str) -> Picture:
        """Returns the picture of an image that a list of the run names."""
        if path not in self._found:
            try:
                images = self.benchmark.images[self.benchmark.parts["train"].images]
                self._found[path] = Picture(path, thumbnail(images, self._places[path]), None)
            except KeyError:
                self._found[path] = Picture(path, None, "the image set does not list it any more")
            except (OSError, ValueError) as error:  # it was removed or damaged since it was scored
                self._found[path] = Picture(path, None, str(error))
        return self._found[path]

    def some(self, paths: Iterable[str]) -> list[Picture]:
        """Returns the first few of some pictures."""
        return [self.at(path) for path in islice(paths, MEMBERS)]
