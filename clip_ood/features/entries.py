"""A folder of segments, which hold entries by their identity; any number of writers and readers may use it.

New entries are written as small segments, which are later merged into few large ones. Merging writes the large segment first
and then removes the small ones, so that a kill in between leaves equal entries twice, and loses none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from clip_ood.features.identity import firsts
from clip_ood.features.merged import remove_retired, retire
from clip_ood.features.rows import Rows
from clip_ood.features.segment import (
    SUFFIX,
    Failure,
    Segment,
    StoreError,
    is_whole,
    open_segment,
    write_segment,
)
from clip_ood.files.writing import remove_abandoned

LARGE = 2**17  # entries of a segment that is merged no further: 100 million entries are 763 segments
LOCK = ".merging"  # the name of the file that is locked by the process which merges
DAMAGED = ".damaged"  # ends the name of a segment that was set aside
LONGEST = 60  # seconds to wait for another process that merges
SMALL = 64  # more small segments than this are merged


class Entries:
    """Entries in the segments of `folder`; `say` is told once of each segment that is damaged.

    Segments of `factor` · `LARGE` entries are merged no further. Other processes may add entries, or other arrays of the same
    entries, at any time; `refresh` looks again. Small segments that were added here are merged once they make a large one.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = print, factor: int = 1) -> None:
        self.folder, self.say, self.factor = folder, say, factor
        self._open: dict[Path, Segment] = {}
        self._damaged: set[Path] = set()
        self._added: dict[Path, int] = {}
        self.refresh()

    def __getstate__(self) -> dict[str, Any]:  # another process maps the files anew
        return {"folder": self.folder, "say": self.say, "factor": self.factor}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    @property
    def segments(self) -> list[Segment]:
        """The segments that were there at the last `refresh`, by name."""
        return [self._open[path] for path in sorted(self._open)]

    def __len__(self) -> int:
        return sum(map(len, self.segments))

    def refresh(self) -> None:
        """Maps the segments that are there now. A damaged segment counts as absent, so that its entries are made again."""
        while True:
            found = sorted(self.folder.glob(f"*{SUFFIX}"))
            self._open = {path: self._open[path] for path in found if path in self._open}
            for path in found:
                if path not in self._open and path not in self._damaged and not self._map(path):
                    break  # it was merged in between: the large segment is there now
            else:
                return

    def _map(self, path: Path) -> bool:
        """Maps a file; returns whether it is still there."""
        try:
            self._open[path] = open_segment(path)
        except (StoreError, FileNotFoundError) as error:
            if not os.path.lexists(path):
                return False
            self._damaged.add(path)
            self.say(f"{error}: its entries are made again; remove the file")
        return True

    def _set_aside(self, segment: Segment) -> None:
        """Renames a segment whose bytes are not those that were written, so that no process reads it."""
        del self._open[segment.path]
        segment.path.rename(segment.path.with_name(segment.path.name + DAMAGED))
        self.say(f"{segment.path} is damaged: its entries are made again by the next run")

    def count(self, arrays: Sequence[str]) -> int:
        """Returns how many entries have one of these arrays, of which each entry has exactly one."""
        return sum(len(segment) for segment in self.segments if any(name in segment.arrays for name in arrays))

    def has(self, identities: np.ndarray, arrays: Sequence[str]) -> np.ndarray:
        """Returns (N,) bool: which of the identities (N, 2) have all these arrays."""
        return np.logical_and.reduce([places >= 0 for _, places in self._find(identities, arrays).values()])

    def rows(self, identities: np.ndarray, arrays: Sequence[str]) -> dict[str, Rows]:
        """Returns arrays of the entries (N, 2), mapped, by name. Raises: KeyError if one of them is not there."""
        found = {}
        for name, (segments, places) in self._find(identities, arrays).items():
            if missing := int((places < 0).sum()):
                raise KeyError(f"{missing} of {len(identities)} entries have no {name} in {self.folder}")
            found[name] = Rows([segment.arrays[name] for segment in segments], torch.from_numpy(places))
        return found

    def failures(self, identities: np.ndarray) -> dict[int, Failure]:
        """Returns why entries could not be made, by position among `identities` (N, 2)."""
        found = {}
        for segment in self.segments:
            if of_segment := segment.about["errors"]:
                rows = segment.rows_of(identities)
                there = np.flatnonzero(np.isin(rows, [int(row) for row in of_segment]))
                found |= {int(place): of_segment[str(rows[place])] for place in there}
        return dict(sorted(found.items()))

    def _find(self, identities: np.ndarray, arrays: Sequence[str]) -> dict[str, tuple[list[Segment], np.ndarray]]:
        """Returns, for each array, the segments that hold it for some of the identities (N, 2), and each identity's row (N,).

        Rows are counted through these segments; -1 means that no segment has the identity. A segment is searched once for all
        arrays.
        """
        places = {name: np.full(len(identities), -1) for name in arrays}
        used: dict[str, list[Segment]] = {name: [] for name in arrays}
        starts = dict.fromkeys(arrays, 0)
        left = np.argsort(identities[:, 0])  # sorted identities are found several times faster
        for segment in self.segments:
            wanted = [name for name in arrays if name in segment.arrays]
            if not wanted or not len(left):
                continue
            rows = segment.rows_of(identities[left])
            there = np.flatnonzero(rows >= 0)
            if not len(there):
                continue
            for name in wanted:
                new = there[places[name][left[there]] < 0]
                places[name][left[new]] = starts[name] + rows[new]
                used[name].append(segment)
                starts[name] += len(segment)
            left = left[np.logical_or.reduce([places[name][left] < 0 for name in arrays])]
        return {name: (used[name], places[name]) for name in arrays}

    def add(
        self,
        identities: np.ndarray,
        arrays: Mapping[str, Tensor],
        failures: Mapping[int, Failure] | None = None,
        made_with: Mapping[str, Any] | None = None,
        name: str = "",
    ) -> Path:
        """Writes entries (n, 2) with their arrays, (n, …) each, as one segment.

        Of two with the same identity, it writes the first. `failures`: by row, why an entry could not be made. Segments are read
        and merged in the order of their names. Raises: StoreError if the segment cannot be written; then nothing of it is there.
        """
        kept = firsts(identities)
        reasons = {str(place): failures[row] for place, row in enumerate(kept.tolist()) if row in (failures or {})}
        rows = torch.from_numpy(kept)
        path = self.folder / f"{name}{uuid4().hex}{SUFFIX}"
        about = {"errors": reasons, "made_with": [made_with] if made_with else []}
        try:
            write_segment(path, identities[kept], {key: [array[rows]] for key, array in arrays.items()}, about)
        except OSError as error:
            raise StoreError(
                f"{self.folder} cannot be written ({error}); what is whole is kept for the next run"
            ) from error
        self._map(path)
        self._added[path] = len(kept)
        if sum(self._added.values()) >= self.factor * LARGE:
            self.merge(list(self._added))
            self._added.clear()
        return path

    def merge(self, paths: Sequence[Path] | None = None) -> None:
        """Merges small segments into large ones: those at `paths`, or all if there are more than `SMALL`.

        One process merges at a time; if another one is merging, this one merges nothing. A damaged segment is left as it is.
        """
        try:
            with self._alone(wait=0) as alone:
                if alone:
                    self._merge_small(paths)
        except OSError as error:
            self.say(f"{self.folder}: its segments could not be merged ({error}); what they hold is whole")

    def _merge_small(self, paths: Sequence[Path] | None) -> None:
        self.refresh()
        remove_abandoned(self.folder)
        remove_retired(self.folder, self.folder / LOCK)
        large = self.factor * LARGE
        small = [each for each in self.segments if len(each) < large and (paths is None or each.path in paths)]
        if paths is None and len(small) <= SMALL:
            return
        settled = [each for each in self.segments if len(each) >= large]
        for kind in dict.fromkeys(segment.kind for segment in small):
            elsewhere = [segment for segment in settled if segment.kind == kind]
            self._merge([segment for segment in small if segment.kind == kind], elsewhere, large)
        self.refresh()

    def _merge(self, segments: list[Segment], elsewhere: list[Segment], large: int) -> None:
        """Merges segments in groups that make large ones; entries that are `elsewhere` as well are dropped."""
        group: list[Segment] = []
        for segment in segments:
            if not is_whole(segment.path):
                self._set_aside(segment)
                continue
            group.append(segment)
            if sum(map(len, group)) >= large:
                self._replace(group, _in_any(elsewhere, group))
                group = []
        if len(group) > 1:
            self._replace(group, _in_any(elsewhere, group))

    def remove(self, identities: np.ndarray) -> None:
        """Removes entries (n, 2): each segment that holds some of them is written again without them.

        Raises: StoreError if it cannot be written.
        """
        try:
            with self._alone(wait=LONGEST):
                self.refresh()
                for segment in self.segments:
                    rows = segment.rows_of(identities)
                    if not (rows >= 0).any():
                        continue
                    if is_whole(segment.path):
                        self._replace([segment], dropped=rows[rows >= 0])
                    else:
                        self._set_aside(segment)
                self.refresh()
        except OSError as error:
            raise StoreError(f"{self.folder} cannot be written ({error})") from error

    def _replace(self, group: list[Segment], dropped: np.ndarray) -> None:
        """Replaces some segments by one that holds each of their entries once, in their order, without the rows `dropped`."""
        identities = np.concatenate([segment.identities for segment in group])
        kept = np.setdiff1d(firsts(identities), dropped)
        ends = np.cumsum([len(segment) for segment in group])
        starts = ends - [len(segment) for segment in group]
        of_each = [kept[(kept >= start) & (kept < end)] - start for start, end in zip(starts, ends, strict=True)]
        reasons = {
            int(start) + int(row): reason
            for start, segment in zip(starts, group, strict=True)
            for row, reason in segment.about["errors"].items()
        }
        made_with = {json.dumps(each, sort_keys=True): each for segment in group for each in segment.about["made_with"]}
        about = {
            "errors": {str(place): reasons[row] for place, row in enumerate(kept.tolist()) if row in reasons},
            "made_with": list(made_with.values()),
        }
        if len(kept):
            arrays = {
                name: [_rows(segment.arrays[name], rows) for segment, rows in zip(group, of_each, strict=True)]
                for name in group[0].arrays
            }
            name = group[0].path.name.removesuffix(SUFFIX)[:-32]
            write_segment(self.folder / f"{name}{uuid4().hex}{SUFFIX}", identities[kept], arrays, about)
        for segment in group:
            retire(segment.path)

    @contextmanager
    def _alone(self, wait: float) -> Iterator[bool]:
        """Yields whether this process has got the folder's lock within this many seconds."""
        if not self.folder.is_dir():
            yield False
            return
        try:
            lock = FileLock(self.folder / LOCK, timeout=wait)
            lock.acquire()
        except (OSError, NotImplementedError):  # another process merges (Timeout), or the file system has no locks
            yield False
            return
        try:
            yield True
        finally:
            lock.release()


def _in_any(segments: list[Segment], group: list[Segment]) -> np.ndarray:
    """Returns those rows of a group, counted through its segments, whose entries are also in one of some other segments."""
    identities = np.concatenate([segment.identities for segment in group])
    there = np.zeros(len(identities), bool)
    for segment in segments:
        there[~there] = segment.rows_of(identities[~there]) >= 0
    return np.flatnonzero(there)


def _rows(array: Tensor, rows: np.ndarray) -> Tensor:
    """Returns these rows (ascending), or the array itself if they are all of it: it is mapped and need not be copied."""
    return array if len(rows) == len(array) else array[torch.from_numpy(rows)]
