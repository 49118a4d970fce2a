"""Judges features that are given, by a run that was fitted on such features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from clip_ood.errors import UserError
from clip_ood.features.identity import identity_of, pairs

if TYPE_CHECKING:
    from clip_ood.detect.prediction import Prediction
    from clip_ood.detect.predictor import Predictor


def judge_features(predictor: Predictor, features: Tensor | np.ndarray | Sequence) -> list[Prediction]:
    """Returns the predictions on features (N, D), each detector's on a row before those on the next.

    Raises: UserError for anything else than N rows of the width that the run was fitted on, of finite numbers.
    """
    values = _checked(features, predictor.saved.manifest.get("width"), predictor.encoder.features)
    predictions = []
    for batch in values.split(predictor.batch_size):
        contents = pairs([identity_of(row.numpy().tobytes()) for row in batch])
        judged = predictor.predict(predictor.outputs(batch.to(predictor.device)), contents)
        predictions += predictor.predictions(judged, [None] * len(batch))
    return predictions


def row_of(cell: Any, width: int, kept_as: str) -> Tensor | str:
    """Returns a row of features (D,), or the reason why it cannot be judged; `kept_as`: the dtype to which the run rounds."""
    try:
        row = cell.detach().cpu() if isinstance(cell, Tensor) else torch.tensor(np.asarray(cell))
    except (TypeError, ValueError):  # None, texts, lists of lists
        return f"a {type(cell).__name__} is no list of {width} floats"
    if row.shape != (width,) or not row.is_floating_point():
        return f"{tuple(row.shape)} of {str(row.dtype).removeprefix('torch.')} is no list of {width} floats"
    return row.float() if _finite(row[None], kept_as).all() else f"it has NaN or infinite numbers (as {kept_as})"


def _finite(values: Tensor, kept_as: str) -> Tensor:
    """Returns which rows (N,) of features have finite numbers after rounding."""
    return values.float().to(getattr(torch, kept_as)).isfinite().all(dim=1)


def _tensor(array: np.ndarray) -> Tensor:
    """Returns an array as a tensor; floats, of any size and order of bytes, as float32."""
    with np.errstate(over="ignore"):
        return torch.as_tensor(array.astype(np.float32) if array.dtype.kind == "f" else array)


def _checked(features: Tensor | np.ndarray | Sequence, width: int | None, kept_as: str) -> Tensor:
    if isinstance(features, np.ndarray) and features.dtype == object:  # an array of arrays, as Arrow gives lists
        features = list(features)
    try:
        rows = [np.asarray(each) for each in features] if isinstance(features, list | tuple) else features
        values = rows if isinstance(rows, Tensor) else _tensor(np.asarray(rows))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"This run judges features, an array (N, {width or 'D'}) of floats, and was given {error}"
        ) from error
    if values.ndim != 2 or not values.is_floating_point() or width not in (None, values.shape[1]):
        raise UserError(
            f"This run judges features, an array (N, {width or 'D'}) of floats, and was given {tuple(values.shape)} of "
            f"{str(values.dtype).removeprefix('torch.')}"
        )
    values = values.detach().cpu().float()
    if len(wrong := (~_finite(values, kept_as)).nonzero()):
        raise UserError(f"Row {int(wrong[0])} of the features has NaN or infinite numbers (as {kept_as}): take it out")
    return values
