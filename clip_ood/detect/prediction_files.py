"""Writes predictions as CSV, JSON Lines or parquet."""

from __future__ import annotations

import csv
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, TextIO

from clip_ood.files.written_names import BYTES, cells, in_utf8, path_columns

COLUMNS = ("path", "is_ood", "score", "p_value", "predicted_class", "confidence", "detector", "copy_of")
FURTHER = {
    "nearest": "path",
    "words": "word",
}  # columns of lists, if they are asked for: what each names, and its cosine
ADAPTED = "adapted_on"  # a further column of numbers, where images are scored as a stream
ROW_GROUP = 65_536  # lines of a parquet file in memory
NAMES = ("predicted_class", "detector", "copy_of")


class PredictionFile:
    """A file that takes predictions one after the other; `close` ends it. `further` are those columns of `FURTHER`, or `ADAPTED`, that it has."""

    columns: tuple[str, ...]

    @abstractmethod
    def write(self, prediction: Mapping[str, Any]) -> None:
        """Writes one line, from a mapping that has at least the columns."""

    def close(self) -> None:
        """Writes the last lines."""


class CSVFile(PredictionFile):
    """A CSV file with a header and a line for each prediction; is_ood is true or false, None is an empty cell, and lists are JSON."""

    def __init__(self, file: TextIO, further: Sequence[str] = ()) -> None:
        self.file, self.writer = file, csv.writer(file)
        self.further, self.columns = further, (*COLUMNS, *further)
        self.writer.writerow(self.columns)

    def write(self, prediction: Mapping[str, Any]) -> None:
        is_ood = prediction["is_ood"]
        values = {name: prediction[name] for name in self.columns}
        values["is_ood"] = None if is_ood is None else str(is_ood).lower()
        values |= {name: json.dumps(values[name]) for name in self.further}
        self.writer.writerow(cells(values, NAMES).values())

    def close(self) -> None:
        self.file.flush()


class JSONLines(PredictionFile):
    """A file with a JSON object on each line."""

    def __init__(self, file: TextIO, further: Sequence[str] = ()) -> None:
        self.file, self.columns = file, (*COLUMNS, *further)

    def write(self, prediction: Mapping[str, Any]) -> None:
        line = json.dumps({name: prediction[name] for name in self.columns})
        self.file.write(line.replace("\x7f", "\\u007f") + "\n")

    def close(self) -> None:
        self.file.flush()


class Parquet(PredictionFile):
    """A parquet file with a row for each prediction; with `exact`, a further column holds the bytes of paths that are not UTF-8.

    See `path_columns`. Other images' paths have escapes for such bytes.
    """

    def __init__(self, file: BinaryIO, further: Sequence[str] = (), exact: bool = False) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        text, number = pa.string(), pa.float64()
        self.columns, self.lists = (*COLUMNS, *further), [name for name in further if name in FURTHER]
        types = dict(zip(COLUMNS, (text, pa.bool_(), pa.float32(), number, text, number, text, text), strict=True))
        types |= {name: pa.list_(pa.struct({FURTHER[name]: text, "cosine": number})) for name in self.lists}
        types |= {ADAPTED: pa.int64()} if ADAPTED in further else {}
        types |= {BYTES: pa.binary()} if exact else {}
        self.exact, self.schema, self.rows = exact, pa.schema(types), []
        self.writer = pq.ParquetWriter(file, self.schema, compression="zstd")

    def write(self, prediction: Mapping[str, Any]) -> None:
        row = {name: prediction[name] for name in self.columns}
        row["copy_of"] = None if row["copy_of"] is None else in_utf8(row["copy_of"])
        for name in self.lists:
            row[name] = [each | {FURTHER[name]: in_utf8(each[FURTHER[name]])} for each in row[name]]
        self.rows.append(row)
        if len(self.rows) == ROW_GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        self.writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        given = path_columns([row["path"] for row in self.rows], self.exact)
        others = {name: [row[name] for row in self.rows] for name in self.columns if name != "path"}
        self.writer.write_table(pa.table(given | others, self.schema))
        self.rows = []
