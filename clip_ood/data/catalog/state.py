"""Says which sets of the catalogue are under a folder, and how many of their images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from clip_ood.config.checks import is_there, layouts
from clip_ood.config.data_schema import ImageSet
from clip_ood.config.sets import Entry, catalogue
from clip_ood.errors import UserError


@dataclass(frozen=True)
class State:
    """One split of a set: the number of images found (None: the set is not there), and what is wrong with it, if anything."""

    entry: Entry
    split: str
    found: int | None
    problem: str = ""

    @property
    def published(self) -> int:
        return self.entry.splits[self.split].images

    @property
    def whole(self) -> bool:
        return self.found == self.published and not self.problem


def look(entry: Entry, split: str, root: Path) -> State:
    """Lists the images of a split under `root`; nothing is downloaded."""
    spec = next((each for each in layouts(ImageSet(catalog=entry.name, split=split)) if is_there(each, root)), None)
    if spec is None:
        return State(entry, split, None)
    from clip_ood.data.listing import list_images  # imports Pillow and more, so only for sets that are there

    try:
        return State(entry, split, len(list_images(entry.name, spec, root, False, 0, partial=True, download=False)))
    except UserError as error:
        return State(entry, split, 0, str(error))


def states(root: Path) -> list[State]:
    """Returns the state of every split of every set."""
    return [look(entry, split, root) for entry in catalogue().values() for split in entry.splits]


def table(found: list[State], root: Path) -> Table:
    """Returns a table for the terminal that compares the catalogue with a folder."""
    table = Table(title=f"Image sets under {root}", title_justify="left")
    for column, side in (("set", "left"), ("split", "left"), ("published", "right"), ("here", "right")):
        table.add_column(column, justify=side, no_wrap=True)
    table.add_column("classes", justify="right", no_wrap=True)
    table.add_column("group", no_wrap=True)
    for state in found:
        entry, first = state.entry, state.split == next(iter(state.entry.splits))
        here = "[dim]–" if state.found is None else f"[{'green' if state.whole else 'red'}]{state.found:,}"
        about = (f"{entry.classes:,}" if entry.classes else "", entry.group or "") if first else ("", "")
        table.add_row(entry.name if first else "", state.split, f"{state.published:,}", here, *about)
    return table


def advice(found: list[State], root: Path) -> list[str]:
    """Returns lines that say what is wrong with sets that are there, and how to get those that are missing."""
    lines = [
        f"{state.entry.name} {state.split}: {_wrong(state)}"
        for state in found
        if state.found is not None and not state.whole
    ]
    ways: dict[str, list[str]] = {}
    for entry in {state.entry.name: state.entry for state in found if state.found is None}.values():
        size = " + ".join(file.size for file in entry.files if file.size)
        terms = "; ".join(filter(None, (size, entry.licence, entry.source)))
        ways.setdefault(entry.advice(root), []).append(f"{entry.name} ({terms})")
    return lines + [f"{', '.join(names)}:\n    {way}" for way, names in ways.items()]


def _wrong(state: State) -> str:
    return state.problem or f"{state.found:,} of {state.published:,} images are there"
