"""Reads decisions.csv and appends to it, so that no decision is lost: not by a kill, and not by two who write at once.

Its columns are time, image, path, decision, label, by and among (see `Decision`). People and other programs may edit it: the columns
may stand in any order, all but `decision` and one of `image` and `path` may be left out, and others may be added; cells may be
divided by commas, semicolons or tabs; a byte order mark and the line ends of any system are taken.
"""

from __future__ import annotations

import codecs
import csv
import errno
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from clip_ood.errors import UserError, nearest, shortened
from clip_ood.files.text_files import START, check_size, encoding_of
from clip_ood.files.writing import naming, sync_folder, written_text
from clip_ood.files.written_names import path_cell, path_of, text_cell, text_of
from clip_ood.process.locks import in_turn
from clip_ood.process.stopping import whole_first
from clip_ood.review.decisions import DRAWN, WORDS, Decision, Decisions
from clip_ood.terminal.shown import one_line

FILE = "decisions.csv"
COLUMNS = ("time", "image", "path", "decision", "label", "by", "among")
IMAGE = re.compile(r"[0-9a-f]{32}")
LINE = r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+"
SPAN = 100  # lines that one cell may have, as the name of a file may hold ends of lines


class NoDecisions(UserError):
    """A file holds something else than decisions; the message names the file and the line."""


@dataclass(frozen=True)
class Layout:
    """How a file is written: what divides its cells, and its columns."""

    delimiter: str = ","
    columns: tuple[str, ...] = COLUMNS

    def line(self, decision: Decision) -> str:
        """Returns the line of a decision."""
        text = io.StringIO()
        cells = {name: text_cell(value) for name, value in vars(decision).items()} | {"path": path_cell(decision.path)}
        csv.writer(text, delimiter=self.delimiter).writerow([cells.get(name, "") for name in self.columns])
        return text.getvalue().removesuffix("\r\n") + "\n"


def read_decisions(path: Path) -> Decisions:
    """Reads the decisions in a file; an empty file has none.

    A line whose end is missing, as a full disk or a power failure leaves it, is no decision, and its number is in `cut`.
    Raises: NoDecisions for a line that says something else, NotText for a file that is too large or no file, OSError.
    """
    size = check_size(path)
    with path.open("rb") as file:
        content = file.read(size)
    if not content.strip():
        return Decisions()
    text = _text(path, content)
    lines = re.findall(LINE, text)
    layout = _layout(path, lines[0])
    found, cut = [], []
    for number, cells in _records(lines[1:], layout):
        line = _decision(path, number, cells, layout)
        if line is None:
            cut.append(number)
        elif line is not BLANK:
            found.append(line)
    return Decisions(tuple(found), tuple(cut))


def append(path: Path, decisions: Sequence[Decision]) -> None:
    """Adds lines to a file, which is made if there is none, and returns once they are on the disk.

    All lines are one write to the end of the file; others who append meanwhile wait. What stands there is never changed, except that columns
    that are needed and not there are added behind the others.
    Raises: NoDecisions if the file is none of decisions; OSError, which names the file.
    """
    with in_turn(path), whole_first(), naming(path):
        layout, before = Layout(), ""
        if path.exists() and path.stat().st_size:
            with path.open("rb") as file:
                layout = _layout_to_append(path, file.readline(START), decisions)
                file.seek(-1, os.SEEK_END)
                before = "" if file.read(1) == b"\n" else "\n"
        else:
            before = layout.delimiter.join(COLUMNS) + "\n"
        text = before + "".join(map(layout.line, decisions))
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            content = text.encode("utf-8", "surrogateescape")
            if os.write(descriptor, content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_folder(path.parent)


BLANK = Decision("")  # an empty line


def _text(path: Path, content: bytes) -> str:
    encoding = encoding_of(content[:START])
    try:
        if encoding == "utf-8":
            text = content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
        else:
            text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise NoDecisions(
            f"{path} is no text in {encoding.upper()} ({error.reason}): save it as CSV in UTF-8"
        ) from None
    if "\0" in text:
        raise NoDecisions(f"{path} holds NUL characters, so it is no CSV file: name one, or export it as CSV in UTF-8")
    return text


def _layout(path: Path, line: str) -> Layout:
    """Returns how a file is written by its first line. Raises: NoDecisions if that names no columns."""
    for delimiter in (",", ";", "\t"):
        names = [
            text_of(cell.strip()).lower() for cell in next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter), [])
        ]
        if "decision" in names and {"image", "path"} & {*names}:
            if twice := next((name for name in COLUMNS if names.count(name) > 1), None):
                raise NoDecisions(f"{path}, line 1: the column {twice!r} stands twice")
            return Layout(delimiter, tuple(names))
    raise NoDecisions(
        f"{path}, line 1: {_shown(line)} names no columns of decisions; expected a line such as {','.join(COLUMNS)}, of which "
        "decision and one of image and path must be there"
    )


def _layout_to_append(path: Path, first: bytes, decisions: Sequence[Decision]) -> Layout:
    if (encoding := encoding_of(first)) != "utf-8":
        raise NoDecisions(f"{path} is in {encoding.upper()}, and lines are added in UTF-8: save it as UTF-8")
    layout = _layout(path, first.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape"))
    needed = {"image", "path", "label"} | (
        {"among", "time"} if any(each.decision == DRAWN for each in decisions) else set()
    )
    return layout if needed <= {*layout.columns} else _widened(path, layout)


def _widened(path: Path, layout: Layout) -> Layout:
    """Writes a file again, whole or not at all, with all columns, those that it lacked behind the others; returns how it is written now."""
    more = [name for name in COLUMNS if name not in layout.columns]
    lines = re.findall(LINE, _text(path, path.read_bytes()))
    with written_text(path) as file:
        writer = csv.writer(file, delimiter=layout.delimiter, lineterminator="\n")
        writer.writerow([*layout.columns, *more])
        for _, cells in _records(lines[1:], layout):
            is_whole = len(cells) >= len(layout.columns)  # a line that lost its end stays one
            writer.writerow([*cells, *[""] * len(more)] if is_whole else cells)
    return Layout(layout.delimiter, (*layout.columns, *more))


def _records(lines: Sequence[str], layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of a line, from 2, and its cells. A cell in quotes may go on in further lines; if it never ends, or what
    follows is no cell, only the first of these lines is meant, since its end was lost."""
    place = 0
    while place < len(lines):
        cells, taken = _cells("".join(lines[place : place + 1]), layout), 1
        if cells is None:
            for more in range(2, min(SPAN, len(lines) - place) + 1):
                if (longer := _cells("".join(lines[place : place + more]), layout)) is not None:
                    if len(longer) >= len(layout.columns):
                        cells, taken = longer, more
                    break
        yield place + 2, _split(lines[place], layout) if cells is None else cells
        place += taken


def _cells(text: str, layout: Layout) -> list[str] | None:
    """Returns the cells of one line of CSV, or None if a cell in quotes does not end in it."""
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=layout.delimiter, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else [] if not rows else None


def _split(line: str, layout: Layout) -> list[str]:
    """Returns the cells of a line that lost its end."""
    return line.rstrip("\r\n").split(layout.delimiter)[: len(layout.columns) - 1]


def _decision(path: Path, number: int, cells: list[str], layout: Layout) -> Decision | None:
    """Returns the decision in a line, `BLANK` for an empty one, or None for a line that lost its end."""
    if not any(cell.strip() for cell in cells):
        return BLANK
    given = dict(zip(layout.columns, cells, strict=False))
    word = text_of(given.get("decision", "")).strip().lower()
    is_short = len(cells) < len(layout.columns)
    if is_short:  # the last cell may have lost its end, too; no decision is the beginning of another one
        given.pop(layout.columns[len(cells) - 1])
        names_image = given.get("image", "").strip() or given.get("path")
        if word not in WORDS or not names_image or (word == "relabel" and "label" not in given):
            return None
    where = f"{path}, line {number}"
    if word not in WORDS:
        raise NoDecisions(
            f"{where}: {_shown(word)} is no decision; expected one of {', '.join(WORDS)}.{nearest(word, WORDS)}"
        )
    known = {field.name for field in fields(Decision)}
    values = {name: text_of(cell).strip() for name, cell in given.items() if name in known} | {"decision": word}
    values |= {"path": path_of(given["path"])} if "path" in given else {}
    values["image"] = values.get("image", "").lower()
    if values["image"] and not IMAGE.fullmatch(values["image"]):
        raise NoDecisions(
            f"{where}: {_shown(given['image'])} is no image: the column holds 32 hex digits, as suspects.csv has them. If a spreadsheet "
            "took them for a number, leave the cell empty: the path is used then"
        )
    if not values["image"] and not values.get("path"):
        raise NoDecisions(f"{where}: it says {word}, and of no image: fill in the column image or path")
    if word == "relabel" and not values.get("label"):
        raise NoDecisions(f"{where}: relabel needs the new class in the column label")
    return Decision(**values)


def _shown(text: str) -> str:
    return repr(one_line(shortened(text.strip())))
