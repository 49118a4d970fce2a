"""Reads a detector's scores back from a file of predictions, in the order of its images."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clip_ood.errors import UserError
from clip_ood.files.written_names import TEXT, csv_rows

NEEDED = ("score", "detector", "copy_of")
FILES = (".csv", ".jsonl", ".parquet")


def predicted_scores(path: Path, column: str) -> np.ndarray:
    """Returns the scores (N,) float64 that the detector `column` gave images, without those of copies of the run's own images.

    Raises: UserError for a file that is none of predictions (.csv, .jsonl or .parquet), or not by this detector; OSError.
    """
    if path.suffix.lower() not in FILES:
        raise UserError(f"{path} must end with {', '.join(FILES)}: it is no file that detect.py --out wrote")
    found, others = [], set()
    try:
        for row in _rows(path):
            detector, copy, score = (row[name] for name in ("detector", "copy_of", "score"))
            if detector != column:
                others.add(detector)
            elif not copy:
                found.append(float(score))
    except KeyError as error:
        raise UserError(f"{path} has no column {error}: it is no file that detect.py --out wrote") from None
    except (ValueError, TypeError, csv.Error) as error:  # pyarrow's errors are ValueErrors, too
        raise UserError(
            f"{path} is damaged, or no file that detect.py --out wrote ({' '.join(str(error).split())[:120]})"
        ) from None
    if any(map(math.isnan, found)):
        raise UserError(f"{path} has an image whose score by {column} is NaN: it cannot be ranked")
    if not found:
        by = f"; it has {', '.join(sorted(map(str, others))[:5])}" if others else ""
        raise UserError(f"{path} has no image that {column} has scored{by}")
    return np.array(found)


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    match path.suffix.lower():
        case ".csv":
            with path.open(**TEXT) as file:
                yield from csv_rows(file)
        case ".jsonl":
            with path.open(encoding="utf-8") as file:
                yield from map(json.loads, file)
        case _:
            import pyarrow.parquet as pq

            with path.open("rb") as file:
                names = [name for name in NEEDED if name in (parquet := pq.ParquetFile(file)).schema_arrow.names]
                for batch in parquet.iter_batches(columns=names):
                    yield from batch.to_pylist()
