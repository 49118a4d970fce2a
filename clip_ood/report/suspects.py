"""Shows the most suspect images of a run beside their nearest ones, groups that lie apart, copies, a map, and labels in doubt."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from markupsafe import Markup

from clip_ood.data.benchmark import Benchmark
from clip_ood.folder.files import read_groups, read_labels, read_suspects
from clip_ood.folder.labels import DoubtfulLabel
from clip_ood.folder.suspects import Suspect
from clip_ood.report.folder_map import COLOURED, folder_map
from clip_ood.report.galleries import Maps
from clip_ood.report.pictures import Picture, Pictures
from clip_ood.runs.run_folder import GROUPS, LABELS, SUSPECTS

SHOWN = 16  # suspects
MEMBERS = 8  # of a group
LISTED = 6  # groups, and groups of copies


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
class ShownLabel:
    """A label that is probably wrong, and the image's picture."""

    doubtful: DoubtfulLabel
    own: Picture


@dataclass(frozen=True)
class Answer:
    """What a page shows of a folder of `images` images: of the suspects in a group that lies apart only the first.

    map is None where images have no coordinates; coloured: how many groups have a colour on it.
    """

    images: int
    suspects: list[Shown]
    groups: list[ShownGroup]
    copies: list[ShownCopies]
    labels: list[ShownLabel]
    map: Markup | None
    coloured: int = 0
    more_groups: int = 0
    more_copies: int = 0

    @property
    def sizes(self) -> dict[int, int]:
        """Returns the number of images of each group that is shown, by the group's number."""
        return {number: each.images for number, each in enumerate(self.groups, start=1)}


def answer(folder: Path, benchmark: Benchmark, maps: Maps | None = None) -> Answer | None:
    """Reads suspects.csv, groups.csv and labels.csv of a run; None if it has none."""
    if not (folder / SUSPECTS).is_file():
        return None
    pictures, first, met = Pictures(benchmark, maps), [], set()
    points: list[tuple[float, float]] = []
    places: dict[int, list[int]] = defaultdict(list)  # of the images of each group, in the order of their ranks
    copies: dict[str, list[str]] = {}
    for count, each in enumerate(read_suspects(folder / SUSPECTS)):
        points.append((math.nan if each.x is None else each.x, math.nan if each.y is None else each.y))
        if len(first) < SHOWN and each.group not in met:
            met |= {each.group} - {None}
            near = None if each.nearest is None else pictures.at(each.nearest)
            first.append(Shown(each, pictures.at(each.path), near))
        if each.group is not None:
            places[each.group].append(count)
        if each.copies:
            copies.setdefault(each.copy_of or each.path, []).append(each.path)
    groups = [
        ShownGroup(members[0].images, members[0].apart, pictures.some((each.path for each in members), MEMBERS))
        for members in (list(of) for _, of in groupby(read_groups(folder / GROUPS), key=lambda each: each.group))
    ]
    alike = [
        ShownCopies(len(paths), pictures.some(sorted(paths), MEMBERS)) for paths in islice(copies.values(), LISTED)
    ]
    suspects = [each.suspect.rank - 1 for each in first if each.suspect.group is None]
    return Answer(
        images=len(points),
        suspects=first,
        groups=groups[:LISTED],
        copies=alike,
        labels=_labels(folder / LABELS, pictures),
        map=folder_map(np.array(points).reshape(-1, 2), [places[number] for number in sorted(places)], suspects),
        coloured=min(len(groups), COLOURED),
        more_groups=max(0, len(groups) - LISTED),
        more_copies=max(0, len(copies) - LISTED),
    )


def _labels(path: Path, pictures: Pictures) -> list[ShownLabel]:
    found = read_labels(path) if path.is_file() else ()
    return [ShownLabel(each, pictures.at(each.path)) for each in islice(found, SHOWN)]
