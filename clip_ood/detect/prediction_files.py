"""Writes predictions as CSV, JSON Lines or parquet."""

from __future__ import annotations

import csv
import json
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, BinaryIO, TextIO

from clip_ood.files.written_names import BYTES, cells, path_columns

COLUMNS = ("path", "is_ood", "score", "p_value", "predicted_class", "confidence", "detector")
ROW_GROUP = 65_536  # lines of a parquet file in memory
NAMES = ("predicted_class", "detector")


class PredictionFile:
    """A file that takes predictions one after the other; `close` ends it."""

    @abstractmethod
    def write(self, prediction: Mapping[str, Any]) -> None:
        """Writes one line, from a mapping that has at least the columns."""

    def close(self) -> None:
        """Writes the last lines."""


class CSVFile(PredictionFile):
    """A CSV file with a header and a line for each prediction; is_ood is true or false, and None is an empty cell."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.writer = file, csv.writer(file)
        self.writer.writerow(COLUMNS)

    def write(self, prediction: Mapping[str, Any]) -> None:
        values = {name: prediction[name] for name in COLUMNS} | {"is_ood": str(prediction["is_ood"]).lower()}
        self.writer.writerow(cells(values, NAMES).values())

    def close(self) -> None:
        self.file.flush()


class JSONLines(PredictionFile):
    """A file with a JSON object on each line."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, prediction: Mapping[str, Any]) -> None:
        self.file.write(json.dumps({name: prediction[name] for name in COLUMNS}).replace("\x7f", "\\u007f") + "\n")

    def close(self) -> None:
        self.file.flush()


class Parquet(PredictionFile):
    """A parquet file with a row for each prediction; with `exact`, a further column holds the bytes of paths that are not UTF-8.

    See `path_columns`.
    """

    def __init__(self, file: BinaryIO, exact: bool = False) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        text, number = pa.string(), pa.float64()
        types = dict(zip(COLUMNS, (text, pa.bool_(), pa.float32(), number, text, number, text), strict=True))
        types |= {BYTES: pa.binary()} if exact else {}
        self.exact, self.schema, self.rows = exact, pa.schema(types), []
        self.writer = pq.ParquetWriter(file, self.schema, compression="zstd")

    def write(self, prediction: Mapping[str, Any]) -> None:
        self.rows.append({name: prediction[name] for name in COLUMNS})
        if len(self.rows) == ROW_GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        self.writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        given = path_columns([row["path"] for row in self.rows], self.exact)
        others = {name: [row[name] for row in self.rows] for name in COLUMNS if name != "path"}
        self.writer.write_table(pa.table(given | others, self.schema))
        self.rows = []
