"""Judges batches of columns, as `datasets.Dataset.map(batched=True)` and `ray.data.Dataset.map_batches` give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from io import IOBase
from math import isnan
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clip_ood.detect.batches import NOT_FINITE
from clip_ood.detect.given import judge_features, row_of
from clip_ood.detect.one_image import picture_of
from clip_ood.detect.prepared import judge_prepared, prepare
from clip_ood.errors import UserError
from clip_ood.files.pictures import UnreadableImage

if TYPE_CHECKING:
    from clip_ood.detect.prediction import Prediction
    from clip_ood.detect.predictor import Predictor

IMAGES = ("image", "bytes", "path")  # columns that hold images; the first that is there is judged
EXPECTED = "a picture, an array (H, W, 3) of uint8, {bytes, path}, bytes or a path"
FEATURES = ("features", "embeddings", "embedding")
TEXTS, NUMBERS = ("predicted_class", "copy_of"), ("score", "p_value", "confidence")
ADDED = ("is_ood", *NUMBERS, *TEXTS, "error")


def judge_columns(predictor: Predictor, batch: Mapping[str, Sequence]) -> dict[str, Any]:
    """Returns the columns of a batch but that of the images, and is_ood, score, p_value, predicted_class, confidence, copy_of, error.

    Images are the column image (pictures as PIL images, arrays (H, W, 3) of uint8 or Hugging Face's {bytes, path}), bytes or path; for a
    run on features that were given, features (B, D). `error` says why an image cannot be judged, and is empty for all others; then is_ood
    is None, numbers are NaN and texts empty. A path beside another column of images names the image.
    Raises: UserError for a predictor of several detectors, and for a batch without such a column, or with one that is to be added.
    """
    if len(predictor.columns) > 1 or predictor.fdr is not None:
        raise UserError(
            "A batch has a row an image: load one detector, as load(RUN, detector='knn'), and without fdr, which decides over all images"
        )
    wanted = FEATURES if predictor.takes_features else IMAGES
    name = next((each for each in wanted if each in batch), None)
    if name is None:
        raise UserError(
            f"A batch has the columns {', '.join(batch)}, and none of {', '.join(wanted)}: rename the one that is meant"
        )
    if taken := [each for each in ADDED if each in batch]:
        raise UserError(
            f"A batch has {', '.join(taken)} among its columns, and predictions add columns of these names: rename yours, or leave them out"
        )
    if _is_one_row(batch[name], predictor.takes_features):
        raise UserError(
            f"The column {name} holds one row, and a batch of rows is judged: call map with batched=True, or map_batches"
        )
    given = list(batch[name])  # by place: a Series of pandas counts by its index
    judged, errors = _features(predictor, given) if predictor.takes_features else _images(predictor, given)
    left = {key: batch[key] for key in batch if key != name or key == "path"}
    return left | _columns(judged, len(given)) | {"error": errors}


def _is_one_row(column: Any, takes_features: bool) -> bool:
    """Says whether a column holds an image or features of one row, as functions get them that are called row by row."""
    if isinstance(column, str | bytes | Path | Mapping | Image.Image):
        return True
    if isinstance(column, np.ndarray | Tensor):
        if takes_features:
            return column.ndim == 1 and column.dtype != object
        return column.ndim == 3 and column.shape[2] in (3, 4)  # (H, W, 3)
    if not takes_features or not all(isinstance(each, Real) for each in column):
        return False
    return not all(map(isnan, column))  # pandas has NaN for rows without features


def _features(predictor: Predictor, given: Sequence) -> tuple[dict[int, Prediction], list[str]]:
    """Returns the prediction on each row of features by its number, and why each other cannot be judged."""
    expected = (predictor.saved.manifest["width"], predictor.encoder.features)
    rows = {row: row_of(cell, *expected) for row, cell in enumerate(given)}
    good = {row: values for row, values in rows.items() if not isinstance(values, str)}
    predictions = judge_features(predictor, torch.stack(list(good.values()))) if good else []
    errors = [values if isinstance(values, str) else "" for values in rows.values()]
    return dict(zip(good, predictions, strict=True)), errors


def _images(predictor: Predictor, given: Sequence) -> tuple[dict[int, Prediction], list[str]]:
    """Returns the prediction on each image by its row, and why each other cannot be judged."""
    judged, errors = {}, [""] * len(given)
    for first in range(0, len(given), predictor.batch_size):
        ready = {}
        for row in range(first, min(first + predictor.batch_size, len(given))):
            found = prepare(partial(_read, given[row]), predictor.backbone.transform)
            if isinstance(found, str):
                errors[row] = found
            else:
                ready[row] = found
        if not ready:
            continue
        pixels, contents = zip(*ready.values(), strict=True)
        for row, found in zip(ready, judge_prepared(predictor, pixels, contents, [None] * len(ready)), strict=True):
            if found is None:
                errors[row] = NOT_FINITE
            else:
                (judged[row],) = found
    return judged, errors


def _read(cell: Any) -> tuple[Image.Image, bytes]:
    if isinstance(cell, Mapping):
        cell = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
    if cell is None or (isinstance(cell, float) and isnan(cell)):  # pandas has NaN for None
        raise UnreadableImage("the row holds no image")
    if isinstance(cell, np.ndarray):
        cell = _of_array(cell)
    if not isinstance(cell, str | Path | bytes | IOBase | Image.Image | Tensor):
        raise UnreadableImage(f"a {type(cell).__name__} is no image: expected {EXPECTED}")
    return picture_of(cell)


def _of_array(array: np.ndarray) -> Image.Image | Tensor:
    try:
        if array.dtype != np.uint8:
            return torch.as_tensor(array)
        if array.ndim == 1:  # which Pillow takes for a picture one pixel wide
            raise ValueError(array.shape)
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[:, :, 0]
        return Image.fromarray(array)
    except (TypeError, ValueError):
        raise UnreadableImage(
            f"an array {array.shape} of {array.dtype} is no picture: expected (H, W), (H, W, 3) or (H, W, 4) of uint8"
        ) from None


def _columns(judged: Mapping[int, Prediction], count: int) -> dict[str, Any]:
    rows = [judged.get(row) for row in range(count)]

    def column(name: str, absent: Any) -> list[Any]:
        values = [None if row is None else getattr(row, name) for row in rows]
        return [absent if value is None else value for value in values]

    return (
        {"is_ood": column("is_ood", None)}
        | {name: np.array(column(name, np.nan), np.float64) for name in NUMBERS}
        | {name: column(name, "") for name in TEXTS}
    )
