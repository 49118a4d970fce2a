"""Verdicts as CSV, JSON Lines or parquet."""

from __future__ import annotations

import csv
import json
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, BinaryIO, TextIO

COLUMNS = ("path", "is_ood", "score", "p_value", "predicted_class", "confidence", "detector")
ROW_GROUP = 65_536  # lines of a parquet file in memory
TEXT = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}  # names are written as the bytes that they are


class VerdictFile:
    """Takes verdicts one after the other; `close` ends the file."""

    @abstractmethod
    def write(self, verdict: Mapping[str, Any]) -> None:
        """One line, of a mapping with (at least) the columns."""

    def close(self) -> None:
        """The last lines."""


class CSVFile(VerdictFile):
    """A header, then a line a verdict; is_ood is true or false, what is None is empty."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.writer = file, csv.writer(file)
        self.writer.writerow(COLUMNS)

    def write(self, verdict: Mapping[str, Any]) -> None:
        values = verdict | {"is_ood": str(verdict["is_ood"]).lower()}
        self.writer.writerow([values[name] for name in COLUMNS])

    def close(self) -> None:
        self.file.flush()


class JSONLines(VerdictFile):
    """An object a line."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, verdict: Mapping[str, Any]) -> None:
        self.file.write(json.dumps({name: verdict[name] for name in COLUMNS}) + "\n")

    def close(self) -> None:
        self.file.flush()


class Parquet(VerdictFile):
    """A row a verdict; bytes of names that are no UTF-8 as \\x escapes."""

    def __init__(self, file: BinaryIO) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        text, number = pa.string(), pa.float64()
        types = dict(zip(COLUMNS, (text, pa.bool_(), pa.float32(), number, text, number, text), strict=True))
        self.schema, self.rows = pa.schema(types), []
        self.writer = pq.ParquetWriter(file, self.schema, compression="zstd")

    def write(self, verdict: Mapping[str, Any]) -> None:
        path = verdict["path"].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        self.rows.append({name: verdict[name] for name in COLUMNS} | {"path": path})
        if len(self.rows) == ROW_GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        self.writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        self.writer.write_table(pa.Table.from_pylist(self.rows, self.schema))
        self.rows = []
