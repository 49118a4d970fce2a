"""Writes names of files, classes and sets so that whoever reads them gets the same name back, whatever it holds.

A file's name is any bytes but NUL and "/". Python keeps those that are not UTF-8 as \\udc80 … \\udcff, and so does JSON, as
escapes. CSV holds the bytes themselves, and puts "./" (paths) or "'" before text that a spreadsheet would take for a formula.
Parquet holds only UTF-8: the bytes of other names stand in a further column. What people read (pages, Markdown, the terminal) is
written by `clip_ood.terminal.shown`.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from clip_ood.files.text_files import not_utf8

if TYPE_CHECKING:
    import pyarrow as pa

TEXT = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}  # how a file that holds CSV is opened
PATHS = ("path", "file", "ood_image")  # columns of CSV files that hold paths
BYTES = "path_bytes"  # a column of parquet files that holds the path's bytes if it is not UTF-8

# What spreadsheets take for a formula: = + - @, also in full width, behind blanks and what cannot be seen; tabs and ends of lines
_FORMULA = re.compile(r"[\t\r\n]|[\s\u200b-\u200f\u2060\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20]")


def json_bytes(content: Any, indent: int | None = 1) -> bytes:
    """Returns JSON in UTF-8, in which only lone surrogates and control characters are escapes.

    >>> json_bytes({"é": "caf\\udce9"}, indent=None).decode()
    '{"é": "caf\\\\udce9"}'
    """
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode("utf-8", "backslashreplace")


_CONTROLS = re.compile("[\x7f-\x9f]")  # the others are escapes already


def path_cell(path: str) -> str:
    """Returns a path as a cell of CSV; `path_of` gives it back.

    >>> path_cell("=1+1.png"), path_cell("./=1+1.png"), path_cell("./a.png")
    ('./=1+1.png', '././=1+1.png', './a.png')
    """
    return _guarded(path, "./")


def path_of(cell: str) -> str:
    """Returns the path that `path_cell` has written."""
    return _unguarded(cell, "./")


def text_cell(text: str) -> str:
    """Returns other text, a name or a reason, as a cell of CSV; `text_of` gives it back.

    >>> text_cell("-x"), text_cell("'-x"), text_cell("'x'"), text_cell("x-y")
    ("'-x", "''-x", "'x'", 'x-y')
    """
    return _guarded(text, "'")


def text_of(cell: str) -> str:
    """Returns the text that `text_cell` has written."""
    return _unguarded(cell, "'")


def cells(row: Mapping[str, Any], texts: Collection[str]) -> dict[str, Any]:
    """Returns a line of CSV by column, in which `texts` (and `PATHS`) are text and numbers stay numbers."""
    return {text_cell(name): _cell(name, value, texts) for name, value in row.items()}


def csv_rows(file: TextIO) -> Iterator[dict[str, str]]:
    """Yields the lines of a CSV file that this project wrote, opened as `TEXT`.

    Raises: ValueError for a line of fewer or more cells than the first one, as one that was cut; csv.Error.
    """
    lines = csv.DictReader(file)
    for row in lines:
        if None in row or None in row.values():
            raise ValueError(f"line {lines.line_num} has other cells than the first one names")
        yield {text_of(name): (path_of if name in PATHS else text_of)(cell) for name, cell in row.items()}


def path_columns(paths: Sequence[str], exact: bool | None = None) -> dict[str, pa.Array]:
    """Returns the columns of a parquet file that hold paths; `paths_of` gives the paths back.

    They are `path`, in which bytes that are not UTF-8 are \\x escapes, and, if there are such bytes (or `exact`), `path_bytes`,
    which is null for all other paths.
    """
    import pyarrow as pa

    odd = [os.fsencode(path) if not_utf8(path) else None for path in paths]
    columns = {"path": pa.array(map(in_utf8, paths), pa.string())}
    return columns | ({BYTES: pa.array(odd, pa.binary())} if exact or any(odd) else {})


def paths_of(table: pa.Table) -> list[str]:
    """Returns the paths that `path_columns` has written."""
    paths = table["path"].to_pylist()
    if BYTES not in table.column_names:
        return paths
    return [
        path if odd is None else os.fsdecode(odd) for path, odd in zip(paths, table[BYTES].to_pylist(), strict=True)
    ]


def in_utf8(path: str) -> str:
    """Returns the path with bytes that are not UTF-8 as \\x escapes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _cell(name: str, value: Any, texts: Collection[str]) -> Any:
    if value is None or not (name in PATHS or name in texts):
        return value
    return (path_cell if name in PATHS else text_cell)(str(value))


def _guarded(text: str, guard: str) -> str:
    bare = _without(text, guard)
    return guard + text if _FORMULA.match(bare) else text


def _unguarded(cell: str, guard: str) -> str:
    return cell.removeprefix(guard) if _FORMULA.match(_without(cell, guard)) else cell


def _without(text: str, guard: str) -> str:
    while text.startswith(guard):
        text = text.removeprefix(guard)
    return text
