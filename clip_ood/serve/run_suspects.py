"""The images of a run by their row in suspects.csv, with what a review looks up: groups that lie apart, doubtful labels, copies, paths,
contents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from clip_ood.errors import UserError
from clip_ood.folder.files import read_groups, read_labels, read_suspects
from clip_ood.folder.labels import DoubtfulLabel
from clip_ood.folder.suspects import Suspect
from clip_ood.runs.run_folder import GROUPS, LABELS, SUSPECTS


class Group(NamedTuple):
    """Images that lie apart from all others: the group's number, how far apart, and the rows of its images."""

    number: int
    apart: float
    rows: tuple[int, ...]


class Unmatched(UserError):
    """suspects.csv is not of the images that groups.csv or labels.csv of the run names."""


@dataclass(frozen=True)
class Suspects:
    """The images of a run; a row is the place of an image in suspects.csv, from 0.

    doubts: the doubtful labels by row, the most doubtful first, or None if the run has checked no labels.
    """

    images: Sequence[Suspect]
    groups: Sequence[Group] = ()
    doubts: Mapping[int, DoubtfulLabel] | None = None

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
            if each.image:
                found[each.image].append(row)
        return found

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The classes of the images, by name."""
        return tuple(sorted({each.label for each in self.images if each.label}))

    @cached_property
    def duplicates(self) -> Sequence[tuple[int, ...]]:
        """The rows of the images in each group of copies, the group with the most suspect image first."""
        found: dict[str, list[int]] = defaultdict(list)
        for row, each in enumerate(self.images):
            if each.copy_of:
                found[each.copy_of].append(row)
        firsts = ((self.row_at.get(path), rows) for path, rows in found.items())
        return sorted(tuple(sorted({*rows, *([] if first is None else [first])})) for first, rows in firsts)


def suspects_of(run: Path) -> Suspects:
    """Reads the lists in a run's folder; without groups.csv there are no groups, and without labels.csv no labels were checked.

    Raises: Damaged for a file that no run writes, Unmatched, OSError without suspects.csv.
    """
    suspects = Suspects(list(read_suspects(run / SUSPECTS)))

    def row(path: str, file: str) -> int:
        if path not in suspects.row_at:
            raise Unmatched(f"{run / file} names images that {SUSPECTS} does not: let the run write both again")
        return suspects.row_at[path]

    rows, apart, doubts = defaultdict(list), {}, None
    for each in read_groups(run / GROUPS) if (run / GROUPS).is_file() else ():
        rows[each.group].append(row(each.path, GROUPS))
        apart[each.group] = each.apart
    if (run / LABELS).is_file():
        doubts = {row(each.path, LABELS): each for each in read_labels(run / LABELS)}
        if unknown := {each.suggested for each in doubts.values()} - {*suspects.labels}:
            raise Unmatched(
                f"{run / LABELS} suggests classes that no image has ({min(unknown)}): let the run write it again"
            )
    groups = [Group(number, apart[number], tuple(sorted(of))) for number, of in rows.items()]
    return Suspects(suspects.images, groups, doubts)
