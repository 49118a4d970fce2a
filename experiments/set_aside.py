"""Puts flagged images together in a folder, to look at."""

from __future__ import annotations

import filecmp
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from clip_ood.data.readers.on_disk import Place
from clip_ood.data.readers.parquet_rows import Row, place_of
from clip_ood.naming import short
from clip_ood.process.locks import in_turn
from clip_ood.terminal.shown import say


@dataclass(frozen=True)
class Aside:
    """Puts flagged images into `folder`, as copies or as links; the images themselves stay where they are."""

    folder: Path
    link: bool = False

    def take(self, inside: str, *place: str | int | None) -> None:
        """Copies the image at a `Place` (or links it, unless it lies in an archive) to `folder`/`inside`; another image of that name
        gets a number.

        Other calls may use the same folder. Raises: OSError if it cannot be read or written.
        """
        parts = parts_of(inside)
        with in_turn(self.folder, lambda line: say(line, file=sys.stderr)):
            self._put(place_of(*place), parts)

    def _put(self, place: Place | Row, parts: list[str]) -> None:
        target = free_place(self.folder, parts, lambda there: _is_it(there, place))
        if target is None:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.link and place.is_file:
            target.symlink_to(os.path.realpath(place.path))
            return
        partial = target.with_name(f".{short(target.name)}.part")
        try:
            if place.is_file:
                shutil.copyfile(place.path, partial)
            else:
                partial.write_bytes(place.read())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def parts_of(inside: str) -> list[str]:
    """Returns the names of folders and file in `inside`, none of which leads out of a folder."""
    return [part for part in PurePosixPath(inside).parts if part not in ("/", "..", ".")]


def free_place(folder: Path, parts: list[str], is_it: Callable[[Path], bool]) -> Path | None:
    """Returns the first place of that name, with a number if need be, where nothing lies; None if what is to be put there lies there."""
    target, number = folder.joinpath(*parts), 1
    while target.is_symlink() or target.exists():
        if is_it(target):
            return None
        number += 1
        target = folder.joinpath(*parts[:-1], _numbered(parts[-1], number))
    return target


def _numbered(name: str, number: int) -> str:
    path = Path(name)
    return f"{short(path.stem)}-{number}{path.suffix}"


def _is_it(target: Path, place: Place | Row) -> bool:
    """Says whether an earlier run has put the image there."""
    if target.is_symlink():
        return os.path.realpath(target) == os.path.realpath(place.path)
    if not target.is_file():  # it is a folder or a pipe
        return False
    if not place.is_file:
        return target.read_bytes() == place.read()
    return filecmp.cmp(target, place.path, shallow=False)
