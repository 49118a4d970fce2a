"""Reads a detector's scores back from a file of predictions, in the order of its images."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clip_ood.calibration import Calibration
from clip_ood.errors import UserError
from clip_ood.files.written_names import TEXT, csv_rows

NEEDED = ("detector", "copy_of", "score", "p_value", "predicted_class")
FILES = (".csv", ".jsonl", ".parquet")
ROUNDING = 1e-6  # of numbers that another program has written anew


def predicted_scores(path: Path, column: str, calibration: Calibration, class_names: Sequence[str]) -> np.ndarray:
    """Returns the scores (N,) float64 that the detector `column` gave images, without those of copies of the run's own images.

    Raises: UserError for a file that is none of predictions (.csv, .jsonl or .parquet), or not by this detector, and for one whose p-values
    are not those that `calibration`, of all images or of a predicted class, gives the scores; OSError.
    """
    if path.suffix.lower() not in FILES:
        raise UserError(f"{path} must end with {', '.join(FILES)}: it is no file that detect.py --out wrote")
    found, others, numbers = [], set(), {name: number for number, name in enumerate(class_names)}
    try:
        for row in _rows(path):
            detector, copy, score, p_value, name = (row[each] for each in NEEDED)
            if detector != column:
                others.add(detector)
            elif not copy:
                found.append((float(score), float(p_value), numbers.get(name, -1)))
    except KeyError as error:
        raise UserError(f"{path} has no column {error}: it is no file that detect.py --out wrote") from None
    except (ValueError, TypeError, csv.Error) as error:  # pyarrow's errors are ValueErrors, too
        raise UserError(
            f"{path} is damaged, or no file that detect.py --out wrote ({' '.join(str(error).split())[:120]})"
        ) from None
    if any(math.isnan(score) for score, _, _ in found):
        raise UserError(f"{path} has an image whose score by {column} is NaN: it cannot be ranked")
    if not found:
        by = f"; it has {', '.join(sorted(map(str, others))[:5])}" if others else ""
        raise UserError(f"{path} has no image that {column} has scored{by}")
    scores, p_values, labels = map(np.array, zip(*found, strict=True))
    fits = _fits(scores, p_values, calibration)
    if not fits.all():  # predictions may be --per-class
        for label, own in calibration.by_class(0.5).items():  # all classes with an image
            rows = ~fits & (labels == label)
            fits[rows] = _fits(scores[rows], p_values[rows], own)
    if not fits.all():
        row = int(np.argmin(fits))
        raise UserError(
            f"{path} is of another {column} than that of --run: among its calibration scores, a score of {scores[row]:.6g} has not the p-value "
            f"{p_values[row]:.6g} that stands there. Name the run that judged, or judge the images by this one (clip-ood detect)"
        )
    return scores


def _fits(scores: np.ndarray, p_values: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Says which p-values (N,) are those of the scores (N,), up to rounding."""
    ends = np.sort([scores * (1 - ROUNDING), scores * (1 + ROUNDING)], axis=0)
    low, high = (calibration.p_values(torch.from_numpy(each)).numpy() for each in ends)
    return (low - ROUNDING <= p_values) & (p_values <= high + ROUNDING)


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
