"""The rows of suspects.csv, which ranks all images of a folder, and of groups.csv, which lists the groups that lie apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clip_ood.features.identity import hexadecimal
from clip_ood.folder.copy_groups import other_copies
from clip_ood.folder.ranking import Ranking


@dataclass(frozen=True)
class Suspect:
    """One image of a folder, at its rank (1: the most suspect).

    Attributes: image identifies the file's content, in hexadecimal; score is the consensus, a fraction, higher means more in-distribution
    (None: no score); group is the number of the group apart that it is in; copies is the number of other images that are copies of it,
    and copy_of the path of the first of them; nearest is the path of the nearest image that is no copy of it, and cosine the cosine to
    that image; words are the nearest ones of a vocabulary, with commas between them (None: there is no vocabulary); x and y are its place
    on the map (see `plane`); scores are those of the detectors, by name (None: no score).
    """

    rank: int
    path: str
    image: str | None
    label: str | None
    score: float | None
    group: int | None
    copies: int
    copy_of: str | None
    nearest: str | None
    cosine: float | None
    x: float | None
    y: float | None
    scores: Mapping[str, float | None]
    words: str | None = None


@dataclass(frozen=True)
class GroupMember:
    """One image of a group that lies apart: the group's number, its images, and how far apart it lies (see `groups_apart`)."""

    group: int
    images: int
    apart: float
    path: str
    image: str | None


@dataclass(frozen=True)
class Folder:
    """N images of a folder.

    Attributes: paths; identities (N, 2) of their contents (None: not known); labels, the names of their classes (None: there is
    none); first (N,): the place of the first image of each one's group of copies; nearest (N,): the place of the nearest image that is no
    copy (−1: there is none), and cosines (N,) to it; points (N, 2), their places on the map; scores (N,) by detector; words, the nearest
    ones of a vocabulary for each image (None: there is no vocabulary).
    """

    paths: Sequence[str]
    identities: np.ndarray | None
    labels: Sequence[str | None]
    first: np.ndarray
    nearest: np.ndarray
    cosines: np.ndarray
    points: np.ndarray
    scores: Mapping[str, np.ndarray]
    words: Sequence[Sequence[str]] | None = None

    def image(self, place: int) -> str | None:
        """The identity of an image's content in hexadecimal."""
        return None if self.identities is None else hexadecimal(self.identities[place])


def suspects(folder: Folder, ranking: Ranking) -> Iterator[Suspect]:
    """Yields all images, the one with the lowest score first, those without a score last, and those of equal scores in their order."""
    group = {place: number for number, each in enumerate(ranking.groups, start=1) for place in each.images.tolist()}
    copies = other_copies(folder.first)
    for rank, place in enumerate(np.argsort(ranking.score, kind="stable").tolist(), start=1):  # NaN comes last
        first, near = int(folder.first[place]), int(folder.nearest[place])
        yield Suspect(
            rank=rank,
            path=folder.paths[place],
            image=folder.image(place),
            label=folder.labels[place],
            score=_known(ranking.score[place]),
            group=group.get(place),
            copies=int(copies[place]),
            copy_of=None if first == place else folder.paths[first],
            nearest=None if near < 0 else folder.paths[near],
            cosine=None if near < 0 else _known(folder.cosines[place]),
            x=_known(folder.points[place, 0]),
            y=_known(folder.points[place, 1]),
            scores={name: _known(values[place]) for name, values in folder.scores.items()},
            words=None if folder.words is None else ", ".join(folder.words[place]),
        )


def group_members(folder: Folder, ranking: Ranking) -> Iterator[GroupMember]:
    """Yields the images of the groups that lie apart, the farthest group first."""
    for number, each in enumerate(ranking.groups, start=1):
        for place in each.images.tolist():
            yield GroupMember(number, len(each.images), each.apart, folder.paths[place], folder.image(place))


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
