"""A parquet file as Hugging Face's datasets and others write it: a column of images, or of their paths, and one of labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from clip_ood.data.readers.objects import Object, image_at
from clip_ood.data.readers.on_disk import Place
from clip_ood.data.readers.parquet_rows import Row, batches, content_of, opened
from clip_ood.errors import UserError, nearest
from clip_ood.files.file_types import WrongType, check_type
from clip_ood.files.regular_file import special
from clip_ood.files.remote.address import Address, WrongAddress, place_at
from clip_ood.naming import as_there

SUFFIX = ".parquet"
PATHS = frozenset(
    ["image", "path", "file", "filename", "file_name", "filepath", "file_path", "image_path", "img_path"]
)  # columns of paths by their names


class WrongTable(UserError):
    """A file is no whole parquet file, or has no such column of images; the message says what it has."""


class ParquetTable:
    """A parquet file with the column of its images: the one that is named, or else the only one of images, or of paths by its name (`PATHS`).

    Paths in it start from the folder `beside` (default: the file's own). Raises: WrongTable, OSError.
    """

    def __init__(self, path: Path, image: str | None = None, beside: Path | Address | None = None) -> None:
        self.path, self.beside = path, path.parent if beside is None else beside
        if (kind := special(path)) is not None:
            raise WrongTable(f"it is {kind}, and no file")
        try:
            self.file = opened(path)
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise WrongTable(_no_parquet(path, error)) from None
        self.schema = self.file.schema_arrow
        if twice := next((name for name in self.schema.names if self.schema.names.count(name) > 1), None):
            raise WrongTable(f"it has several columns {twice}: rename all but one")
        self.features = _features(self.schema)
        fitting = [name for name in self.schema.names if self._holds_images(name)]
        paths = [name for name in self.schema.names if name.lower() in PATHS and self._is_text(name)]
        self.image = self._column(image, "image", fitting or paths)

    def places(self) -> Iterator[Row | Place | Object | WrongAddress]:
        """Yields the place of each image; of a path, the file that it leads to, which may be an address, or what is wrong with that."""
        are_paths = self._is_text(self.image)
        for group in range(self.file.metadata.num_row_groups):
            if not are_paths and self._all_there(group):
                rows = self.file.metadata.row_group(group).num_rows
                yield from (Row(str(self.path), group, row, self.image) for row in range(rows))
                continue
            row = 0
            for cells in batches(self.file, group, self.image):
                for cell in cells.to_pylist():
                    path = cell if are_paths else cell.get("path") if isinstance(cell, dict) else None
                    is_elsewhere = path is not None and (are_paths or content_of(cell) is None)
                    yield self._at(path) if is_elsewhere else Row(str(self.path), group, row, self.image)
                    row += 1

    def _at(self, path: str) -> Place | Object | WrongAddress:
        try:
            place = self.beside / place_at(path)
            return image_at(Path(as_there(str(place))) if isinstance(place, Path) else place)
        except WrongAddress as error:
            return error

    def labels(self, column: str | None) -> tuple[list[Any], list[str] | None] | None:
        """Returns the label of each row (None: no label), and the classes' names in label order if Hugging Face's metadata tell them.

        `column` is that of the labels (None: the only one of class labels, or else the one called label). None without such a column.
        """
        classes = [name for name, about in self.features.items() if about.get("_type") == "ClassLabel"]
        if column is None and len(classes) != 1 and "label" in self.schema.names:
            column = "label"
        if column is None and not classes:
            return None
        column = self._column(column, "label", classes)
        kind = self._kind(column)
        if not (pa.types.is_integer(kind) or self._is_text(column)):
            raise WrongTable(f"its column {column} holds {kind}; labels are whole numbers or texts")
        names = self.features.get(column, {}).get("names")
        tells_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
        names = names if tells_names and pa.types.is_integer(kind) else None  # texts are names already
        return self.file.read([column], use_threads=False).column(0).to_pylist(), names

    def _column(self, column: str | None, key: str, fitting: list[str]) -> str:
        if column is None and len(fitting) == 1:
            return fitting[0]
        has = ", ".join(f"{field.name} ({field.type})" for field in self.schema)[:500]
        if column is None:
            found = f"several columns of {key}s, {', '.join(fitting)}" if fitting else f"no column of {key}s"
            raise WrongTable(
                f"it has {found}: name the one that is meant ({key}: COLUMN, in the config of a set). It has {has}"
            )
        if column not in self.schema.names:
            raise WrongTable(f"it has no column {column!r} ({key}).{nearest(column, self.schema.names)} It has {has}")
        if key == "image" and not (self._holds_images(column) or self._is_text(column)):
            raise WrongTable(
                f"its column {column} holds {self.schema.field(column).type}, and no images, bytes or paths"
            )
        return column

    def _holds_images(self, name: str) -> bool:
        kind = self._kind(name)
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
        return _is_binary(kind)

    def _is_text(self, name: str) -> bool:
        return _is(self._kind(name), "string", "large_string", "string_view")

    def _kind(self, name: str) -> pa.DataType:
        """Returns the type of a column's values, which a dictionary may hold once each."""
        kind = self.schema.field(name).type
        return kind.value_type if pa.types.is_dictionary(kind) else kind

    def _all_there(self, group: int) -> bool:
        """Says whether every image of a row group is in the file, as far as its statistics tell."""
        about = self.file.metadata.row_group(group)
        columns = [about.column(index) for index in range(about.num_columns)]
        wanted = {self.image, f"{self.image}.bytes"}
        found = [each.statistics for each in columns if each.path_in_schema in wanted]
        return len(found) == 1 and found[0] is not None and found[0].has_null_count and found[0].null_count == 0


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Returns what Hugging Face's metadata say of each column; nothing if there are none."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: about for name, about in found.items() if isinstance(about, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _no_parquet(path: Path, error: Exception) -> str:
    try:
        check_type(path)
    except WrongType as wrong:
        return str(wrong)
    return f"it is no whole parquet file ({error})"


def _is_binary(kind: pa.DataType) -> bool:
    return _is(kind, "binary", "large_binary", "fixed_size_binary", "binary_view")


def _is(kind: pa.DataType, *names: str) -> bool:
    """Says whether a type is one of these; early versions of pyarrow do not know all of them."""
    return any(getattr(pa.types, f"is_{name}", lambda kind: False)(kind) for name in names)
