"""Says which sets of the catalogue are under a folder, and how many of their images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from rich.text import Text

from clip_ood.config.checks import is_there, layouts
from clip_ood.config.data_schema import ImageSet
from clip_ood.config.sets import Entry, catalogue
from clip_ood.data.comparability import of_count
from clip_ood.errors import UserError


@dataclass(frozen=True)
class State:
    """One split of a set: the number of images found (None: the set is not there), and what is wrong with it, if anything."""

    entry: Entry
    split: str
    found: int | None
    problem: str = ""

    @property
    def published(self) -> int | None:
        """The published number of images, or None if none was published."""
        return self.entry.splits[self.split].images

    @property
    def whole(self) -> bool:
        """Whether as many images are there as were published, or any if no number was."""
        return self.found is not None and self.found == (self.published or self.found) and not self.problem

    @property
    def word(self) -> str:
        """The state in a word or two."""
        if self.found is None:
            return "missing"
        if self.problem:
            return "wrong"
        if self.whole:
            return "whole" if self.published else "there"
        return "incomplete" if self.found < self.published else "too many"

    @property
    def trouble(self) -> str:
        """What is wrong with a split that is there, and what that means for comparisons; empty if nothing is."""
        if self.found is None or self.whole:
            return ""
        counts = f"{self.found:,} of {self.published:,} images are there" if self.published else ""
        return self.problem or f"{counts}. {of_count(self.found, self.published)}"


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


def table(found: list[State], root: Path) -> Iterator[Text]:
    """Yields lines for the terminal that compare the catalogue with a folder: a set, then its splits; 80 columns are enough."""
    yield Text(f"Image sets under {root}: published images, images here, state", style="bold")
    for entry, splits in groupby(found, key=lambda state: state.entry):
        classes = f"{entry.classes:,} classes" if entry.classes else ""
        told = filter(None, (classes, entry.group, entry.size or "size ?", entry.licence))
        yield Text.assemble((entry.name, "bold"), f" · {' · '.join(told)}")
        for state in splits:
            published = "?" if state.published is None else f"{state.published:,}"
            here = "–" if state.found is None else f"{state.found:,}"
            style = "dim" if state.found is None else "green" if state.whole else "red"
            yield Text.assemble(f"  {state.split:24}{published:>12}", (f"{here:>12}  {state.word}", style))


def advice(found: list[State], root: Path) -> list[str]:
    """Returns lines that say what is wrong with sets that are there, and how to get those that are missing."""
    lines = [f"{state.entry.name} {state.split}: {state.trouble}" for state in found if state.trouble]
    ways: dict[str, list[str]] = {}
    for entry in {state.entry.name: state.entry for state in found if state.found is None}.values():
        terms = "; ".join(filter(None, (entry.size, entry.licence, entry.source)))
        ways.setdefault(entry.advice(root), []).append(f"{entry.name} ({terms})")
    return lines + [f"{', '.join(names)}:\n    {way}" for way, names in ways.items()]
