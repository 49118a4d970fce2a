"""Reads suspects.csv and groups.csv of a run: its images, most suspect first, and the groups that lie apart."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from clip_ood.errors import UserError
from clip_ood.files.written_names import TEXT, path_of, text_of

SUSPECTS, GROUPS = "suspects.csv", "groups.csv"
ABOUT = ("rank", "path", "image", "label", "score", "group", "copies", "copy_of", "nearest", "cosine")


class Suspect(NamedTuple):
    """A line of suspects.csv; `scores` are those of each detector, in the order of `Suspects.detectors`."""

    path: str
    image: str
    label: str
    score: str
    group: str
    copy_of: str
    nearest: str
    cosine: str
    scores: tuple[str, ...]


class Group(NamedTuple):
    """Images that lie apart from all others: the group's number, how far apart, and the rows of its images."""

    number: str
    apart: str
    rows: tuple[int, ...]


class BrokenList(UserError):
    """suspects.csv or groups.csv is not as a run writes it."""


@dataclass(frozen=True)
class Suspects:
    """The images of a run; a row is the place of an image in suspects.csv, from 0."""

    images: Sequence[Suspect]
    detectors: tuple[str, ...]
    groups: Sequence[Group] = ()

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def row_at(self) -> Mapping[str, int]:
        """The row of the image at each path."""
        return {each.path: row for row, each in enumerate(self.images)}

    @cached_property
    def rows_of(self) -> Mapping[str, Sequence[int]]:
        """The rows of the images with each content."""
        found: dict[str, list[int]] = defaultdict(list)
        for row, each in enumerate(self.images):
            found[each.image].append(row)
        return found

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The classes of the images, by name."""
        return tuple(sorted({each.label for each in self.images} - {""}))

    @cached_property
    def duplicates(self) -> Sequence[tuple[int, ...]]:
        """The rows of the images in each group of copies, the group with the most suspect image first."""
        found: dict[str, list[int]] = defaultdict(list)
        for row, each in enumerate(self.images):
            if each.copy_of:
                found[each.copy_of].append(row)
        firsts = ((self.row_at.get(path), rows) for path, rows in found.items())
        return sorted(tuple(sorted({*rows, *([] if first is None else [first])})) for first, rows in firsts)


def read_suspects(folder: Path) -> Suspects:
    """Reads both files of a run's folder; without groups.csv there are no groups.

    Raises: BrokenList for a file that lacks a column or has lines of other lengths; OSError without suspects.csv.
    """
    path = folder / SUSPECTS
    images, detectors = [], ()
    with path.open(**TEXT) as file:
        lines = csv.reader(file)
        columns = _columns(path, next(lines, []), ("path", "image"))
        detectors = tuple(name for name in columns if name not in ABOUT)
        place = {name: columns.index(name) for name in columns}
        of_scores = [place[name] for name in detectors]
        for number, cells in enumerate(lines, 2):
            if len(cells) != len(columns):
                raise BrokenList(
                    f"{path}, line {number}: {len(cells)} cells, and {len(columns)} columns. Let the run write it again"
                )
            taken = {name: cells[place[name]] if name in place else "" for name in ABOUT}
            images.append(
                Suspect(
                    path_of(taken["path"]),
                    taken["image"],
                    text_of(taken["label"]),
                    taken["score"],
                    taken["group"],
                    path_of(taken["copy_of"]),
                    path_of(taken["nearest"]),
                    taken["cosine"],
                    tuple(cells[at] for at in of_scores),
                )
            )
    suspects = Suspects(images, detectors)
    return Suspects(images, detectors, _groups(folder / GROUPS, suspects.row_at))


def _groups(path: Path, row_at: Mapping[str, int]) -> list[Group]:
    if not path.is_file():
        return []
    rows, apart = defaultdict(list), {}
    with path.open(**TEXT) as file:
        lines = csv.reader(file)
        columns = _columns(path, next(lines, []), ("group", "apart", "path"))
        group, far, name = (columns.index(each) for each in ("group", "apart", "path"))
        for cells in lines:
            row = row_at.get(path_of(cells[name])) if len(cells) == len(columns) else None
            if row is None:
                raise BrokenList(f"{path} does not fit to {SUSPECTS} beside it: let the run write both again")
            rows[cells[group]].append(row)
            apart[cells[group]] = cells[far]
    return [Group(number, apart[number], tuple(sorted(of))) for number, of in rows.items()]


def _columns(path: Path, first: Sequence[str], needed: Sequence[str]) -> list[str]:
    columns = [text_of(cell) for cell in first]
    if lacking := [name for name in needed if columns.count(name) != 1]:
        raise BrokenList(
            f"{path} has no column {lacking[0]!r}: it is not as a run writes it. Let the run write it again"
        )
    return columns
