"""The images of a run by their row in suspects.csv, with what a review looks up: groups that lie apart, copies, paths, contents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from clip_ood.errors import UserError
from clip_ood.folder.files import read_groups, read_suspects
from clip_ood.folder.suspects import Suspect
from clip_ood.runs.run_folder import GROUPS, SUSPECTS


class Group(NamedTuple):
    """Images that lie apart from all others: the group's number, how far apart, and the rows of its images."""

    number: int
    apart: float
    rows: tuple[int, ...]


class Unmatched(UserError):
    """suspects.csv and groups.csv of a run are not of the same images."""


@dataclass(frozen=True)
class Suspects:
    """The images of a run; a row is the place of an image in suspects.csv, from 0."""

    images: Sequence[Suspect]
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
    """Reads both files of a run's folder; without groups.csv there are no groups.

    Raises: Damaged for a file that no run writes, Unmatched, OSError without suspects.csv.
    """
    suspects = Suspects(list(read_suspects(run / SUSPECTS)))
    rows, apart = defaultdict(list), {}
    for each in read_groups(run / GROUPS) if (run / GROUPS).is_file() else ():
        if each.path not in suspects.row_at:
            raise Unmatched(f"{run / GROUPS} names images that {SUSPECTS} does not: let the run write both again")
        rows[each.group].append(suspects.row_at[each.path])
        apart[each.group] = each.apart
    return Suspects(suspects.images, [Group(number, apart[number], tuple(sorted(of))) for number, of in rows.items()])
