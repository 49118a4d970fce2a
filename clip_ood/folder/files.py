"""Writes and reads suspects.csv, groups.csv and labels.csv of a run's folder."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from clip_ood.files.records import Unfit, undamaged
from clip_ood.files.writing import written_text
from clip_ood.files.written_names import TEXT, path_cell, path_of, text_cell, text_of
from clip_ood.folder.labels import DoubtfulLabel
from clip_ood.folder.suspects import GroupMember, Suspect
from clip_ood.terminal.shown import shown


def _whole(cell: str) -> int:
    number = int(cell)
    if number < 0:
        raise ValueError
    return number


# How the cells of each column are written and read, and what they hold; an empty cell is None
_Kind = tuple[Callable[[Any], str], Callable[[str], Any], str]
_PATH: _Kind = (path_cell, path_of, "a path")
_TEXT: _Kind = (text_cell, text_of, "a text")
_WHOLE: _Kind = (str, _whole, "a whole number")
_FRACTION: _Kind = (lambda value: f"{value:.6f}", float, "a number")
_SCORE: _Kind = (lambda value: f"{value:.9g}", float, "a number")

SUSPECTS = {
    "rank": _WHOLE, "path": _PATH, "image": _TEXT, "label": _TEXT, "score": _FRACTION, "group": _WHOLE, "copies": _WHOLE,
    "copy_of": _PATH, "nearest": _PATH, "cosine": _FRACTION, "words": _TEXT, "x": _FRACTION, "y": _FRACTION,
}  # fmt: skip
GROUPS = {"group": _WHOLE, "images": _WHOLE, "apart": _SCORE, "path": _PATH, "image": _TEXT}
LABELS = {
    "rank": _WHOLE, "path": _PATH, "image": _TEXT, "label": _TEXT, "suggested": _TEXT, "label_probability": _FRACTION,
    "suggested_probability": _FRACTION,
}  # fmt: skip


def write_suspects(path: Path, suspects: Iterable[Suspect]) -> None:
    """Writes suspects.csv: a line for each image, with a column for each detector behind the others.

    All suspects have scores of the same detectors. Raises: OSError, which names the file.
    """
    rows = iter(suspects)
    first = next(rows, None)
    detectors = list(first.scores) if first else []
    with written_text(path) as file:
        writer = csv.writer(file)
        writer.writerow([*SUSPECTS, *map(text_cell, detectors)])
        for each in chain([first] if first else [], rows):
            scores = [_written(each.scores[name], _SCORE) for name in detectors]
            writer.writerow([_written(getattr(each, name), kind) for name, kind in SUSPECTS.items()] + scores)


def read_suspects(path: Path) -> Iterator[Suspect]:
    """Yields the lines of a suspects.csv. Raises: Damaged, which names the line, for anything else, OSError."""
    for number, values, detectors in _read(path, SUSPECTS, ("rank", "path", "copies"), more=True, since=("words",)):
        _check_rank(path, number, values["rank"])
        yield Suspect(**values, scores=detectors)


def write_groups(path: Path, members: Iterable[GroupMember]) -> None:
    """Writes groups.csv: a line for each image of a group that lies apart. Raises: OSError, which names the file."""
    _write(path, GROUPS, members)


def read_groups(path: Path) -> Iterator[GroupMember]:
    """Yields the lines of a groups.csv. Raises: Damaged, which names the line, for anything else, OSError."""
    for _, values, _ in _read(path, GROUPS, ("group", "images", "apart", "path"), more=False):
        yield GroupMember(**values)


def write_labels(path: Path, doubtful: Iterable[DoubtfulLabel]) -> None:
    """Writes labels.csv: a line for each label that is probably wrong. Raises: OSError, which names the file."""
    _write(path, LABELS, doubtful)


def read_labels(path: Path) -> Iterator[DoubtfulLabel]:
    """Yields the lines of a labels.csv. Raises: Damaged, which names the line, for anything else, OSError."""
    for number, values, _ in _read(path, LABELS, [name for name in LABELS if name != "image"], more=False):
        _check_rank(path, number, values["rank"])
        yield DoubtfulLabel(**values)


def _check_rank(path: Path, number: int, rank: int) -> None:
    if rank != number:
        with undamaged(path):
            raise Unfit(f"line {number + 1}: its rank is {rank}, and must be {number}")


def _write(path: Path, columns: dict[str, _Kind], rows: Iterable[Any]) -> None:
    with written_text(path) as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([_written(getattr(each, name), kind) for name, kind in columns.items()] for each in rows)


def _written(value: Any, kind: _Kind) -> str:
    return "" if value is None else kind[0](value)


def _read(
    path: Path, columns: dict[str, _Kind], needed: Sequence[str], more: bool, since: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, Any], dict[str, float | None]]]:
    """Yields the number of each line behind the header, its values by column, and those of further columns; a file of an earlier
    version lacks the columns `since`."""
    with undamaged(path), path.open(**TEXT) as file:
        lines = csv.reader(file)
        header = _next(lines, 0) or []
        columns = {name: kind for name, kind in columns.items() if name in header or name not in since}
        others = [text_of(name) for name in header[len(columns) :]]
        if header[: len(columns)] != list(columns) or (others and not more) or len(set(others)) < len(others):
            raise Unfit(f"its first line must name the columns {', '.join(columns)}")
        number = 0
        while (cells := _next(lines, number)) is not None:
            number += 1
            if len(cells) != len(header):
                raise Unfit(f"line {number + 1} has {len(cells)} cells, and must have {len(header)}")
            values = {
                name: _value(cell, kind, name, number, name in needed)
                for (name, kind), cell in zip(columns.items(), cells, strict=False)
            }
            scores = {
                name: _value(cell, _SCORE, name, number, False)
                for name, cell in zip(others, cells[len(columns) :], strict=True)
            }
            yield number, values, scores


def _next(lines: Iterator[list[str]], number: int) -> list[str] | None:
    try:
        return next(lines, None)
    except csv.Error as error:
        raise Unfit(f"line {number + 2}: {error}") from None


def _value(cell: str, kind: _Kind, name: str, number: int, is_needed: bool) -> Any:
    if cell == "" and not is_needed:
        return None
    try:
        if cell == "":
            raise ValueError
        return kind[1](cell)
    except ValueError:
        raise Unfit(f"line {number + 1}: its {name} is {shown(cell)!r}, and must be {kind[2]}") from None
