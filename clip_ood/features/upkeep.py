"""Lists what lies in a feature store, checks whether it is whole, and removes it."""

from __future__ import annotations

import shutil
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from clip_ood.errors import UserError
from clip_ood.files.records import Damaged, Record, Text, read_record
from clip_ood.process.locks import InUse, alone
from clip_ood.terminal.console import Terminal
from clip_ood.terminal.shown import say

DAY = 86400  # seconds
KINDS = {"images": ["valid"], "texts": ["embeddings", "valid"]}  # kind -> arrays of which each entry has one
FILES = "files"  # the folder that says what files were found to hold


@dataclass(frozen=True)
class Stored:
    """The folder of one encoder; `about` is its fingerprint, None if an older version wrote it, and empty if it is damaged."""

    folder: Path
    about: dict[str, Any] | None

    @property
    def title(self) -> str:
        """A short description of the encoder."""
        if self.about is None:
            return "of an older version"
        if not self.about:
            return "encoder.json is damaged: remove it, and the next run writes it again"
        return f"{self.about['library']} {self.about['model']}, {self.about['weights'][:20]}, {self.about['precision']}"

    @property
    def size(self) -> int:
        """Its bytes on disk."""
        return size_of(self.folder)

    @property
    def last_used(self) -> float:
        """The time when a run last read from it or wrote to it, in seconds since 1970."""
        places = [self.folder, *self.folder.glob("*.json"), *(self.folder / kind for kind in KINDS)]
        return max(path.stat().st_mtime for path in places if path.exists())


def encoders(root: Path) -> list[Stored]:
    """Returns the encoders under a root folder, by number."""
    found = []
    for path in sorted(root.glob("*/encoder.json")):
        old = any(path.parent.glob("*/manifest.json"))
        found.append(Stored(path.parent, None if old else _about(path)))
    return found


class About(Record):
    """What an encoder.json says of an encoder."""

    library: Text
    model: Text
    precision: Text
    weights: Text


def _about(path: Path) -> dict[str, Any]:
    try:
        return read_record(path, About)
    except Damaged:
        return {}


def show(root: Path) -> None:
    """Prints a line for each encoder."""
    from clip_ood.features.entries import Entries

    table = Table(box=SIMPLE_HEAD, title=f"Features in {root}")
    for title in ("number", "encoder", "images", "texts", "size", "last use"):
        table.add_column(title, justify="left" if title in ("number", "encoder") else "right")
    for each in encoders(root):
        counts = (
            [f"{Entries(each.folder / kind).count(of):,}" for kind, of in KINDS.items()]
            if each.about is not None
            else ["", ""]
        )
        day = time.strftime("%Y-%m-%d", time.localtime(each.last_used))
        table.add_row(each.folder.name, each.title, *counts, readable(each.size), day)
    Terminal().print(table)
    known = Entries(root / FILES).count(["identity"])
    say(
        f"{FILES}: what {known:,} files, some of them gone by now, were found to hold ({readable(size_of(root / FILES))})"
    )


def check(root: Path, repair: bool) -> int:
    """Reads every segment and, with `repair`, removes those that are damaged. Returns how many are damaged."""
    from clip_ood.features.entries import DAMAGED
    from clip_ood.features.segment import SUFFIX, StoreError, is_whole, open_segment

    places = [
        root / FILES,
        *(each.folder / kind for each in encoders(root) if each.about is not None for kind in KINDS),
    ]
    damaged = [path for place in places for path in place.glob(f"*{SUFFIX}{DAMAGED}")]
    for path in damaged:
        say(f"{path} was found to be damaged and set aside")
    count = 0
    for path in sorted(path for place in places for path in place.glob(f"*{SUFFIX}")):
        try:
            count += 1
            if not is_whole(path):
                damaged.append(path)
                entries = f"{len(open_segment(path)):,} entries"
                say(f"{path} is damaged ({entries})")
        except StoreError:
            say(f"{path} is damaged (its number of entries cannot be read)")
        except FileNotFoundError:
            count -= 1  # a run has merged it meanwhile
    say(f"{count} segments, {len(damaged)} damaged")
    for path in damaged if repair else []:
        path.unlink(missing_ok=True)
    if damaged:
        way_out = f"clip-ood features check --repair --root {root} removes what is damaged"
        say("removed: the next run makes these entries again" if repair else way_out)
    return 0 if repair else len(damaged)


def remove(root: Path, chosen: list[Stored], dry: bool) -> None:
    """Removes the folders of encoders, or says which it would remove.

    Raises: InUse for those that runs work with, after all others are removed.
    """
    used = []
    for each in chosen:
        try:
            with nullcontext() if dry else alone(each.folder, "wait until it ends; its features are kept"):
                say(f"{'would remove' if dry else 'removing'} {each.folder} ({each.title}, {readable(each.size)})")
                if not dry and each.folder.is_dir():  # otherwise another call was faster
                    shutil.rmtree(each.folder)
        except InUse as error:
            used.append(str(error))
    if used:
        raise InUse("\n".join(used))
    if not chosen:
        say(f"There are no such encoders in {root}.")


def remove_files(root: Path, dry: bool) -> None:
    """Removes what files were found to hold, or says how much that is; features stay. Raises: InUse if a run works with it."""
    with nullcontext() if dry else alone(root / FILES, "wait until it ends"):
        say(
            f"{'would remove' if dry else 'removing'} {root / FILES} ({readable(size_of(root / FILES))}): the next run reads its files once"
        )
        if not dry:
            shutil.rmtree(root / FILES, ignore_errors=True)
            (root / "hashes.json").unlink(missing_ok=True)


def choose(known: list[Stored], numbers: list[str], old: bool, unused_for: float | None) -> list[Stored]:
    """Returns the chosen encoders. Raises: ValueError for a number that is empty or fits none or several, and for days below 0."""
    if unused_for is not None and not unused_for >= 0:
        raise UserError(f"--unused-for: {unused_for:g} must be a number of days, 0 or more")
    chosen = [each for each in known if old and each.about is None]
    if unused_for is not None:
        chosen += [each for each in known if each.last_used < time.time() - unused_for * DAY]
    for number in numbers:
        fitting = [each for each in known if number and each.folder.name.startswith(number)]
        if len(fitting) != 1:
            there = ", ".join(each.folder.name for each in known) or "none"
            raise UserError(
                f"{number or 'An empty text'} begins the number of {len(fitting)} encoders; there are: {there}"
            )
        chosen += fitting
    return list({each.folder: each for each in chosen}.values())


def size_of(folder: Path) -> int:
    """Returns the bytes of all files in a folder, 0 if it is not there."""
    sizes = []
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a run has merged it meanwhile
            sizes.append(path.stat().st_size if path.is_file() else 0)
    return sum(sizes)


def readable(size: int) -> str:
    """Returns a number of bytes as a short text.

    >>> readable(5_300_000)
    '5.3 MB'
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.1f} {unit}" if unit != "bytes" else f"{size} bytes"
        size /= 1000
    raise AssertionError
