"""Writes features, scores and groups of images to one Parquet file, for DuckDB, FiftyOne, Embedding Atlas and others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from clip_ood.features.rows import Rows
from clip_ood.files.writing import written_whole
from clip_ood.files.written_names import path_columns

BLOCK = 4096  # images written at once


@dataclass(frozen=True)
class EmbeddedSet:
    """N images of a set, and the part that they play in a run (role).

    Attributes: paths; images, the identity of each one's content in hexadecimal; labels, the names of their classes; features (N, D);
    score (N,), the consensus, where higher means more in-distribution; group (N,), the number of the group apart (0: none); points
    (N, 2), their places on the map; scores (N,) by detector. What is not known is None or NaN.
    """

    name: str
    role: str
    paths: Sequence[str]
    images: Sequence[str | None]
    labels: Sequence[str | None]
    features: Rows
    score: np.ndarray
    group: np.ndarray
    points: np.ndarray
    scores: Mapping[str, np.ndarray]


def write_embeddings(
    path: Path,
    sets: Iterable[EmbeddedSet],
    detectors: Sequence[str],
    width: int,
    encoder: Mapping[str, Any],
    preprocessing: Mapping[str, Any],
) -> int:
    """Writes a row for each image of each set, in their order, block by block, and returns the number of rows.

    Columns: set, role, path (path_bytes, where it is not UTF-8), image, label, score, group, x, y, one for each of the detectors,
    named `score_<detector>`, and features, a fixed-size list of `width` float32. What is not known is null. The metadata hold
    `encoder` and `preprocessing` as JSON. Raises: OSError, which names the file.
    """
    schema, count = _schema(detectors, width, encoder, preprocessing), 0
    with written_whole(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for each in sets:
            for start in range(0, len(each.paths), BLOCK):
                writer.write_table(_table(each, slice(start, start + BLOCK), detectors, schema))
            count += len(each.paths)
    return count


def _table(of: EmbeddedSet, rows: slice, detectors: Sequence[str], schema: pa.Schema) -> pa.Table:
    paths = of.paths[rows]
    block = of.features.take(torch.arange(rows.start, rows.start + len(paths))).float().numpy()
    columns = {
        "set": pa.array([of.name] * len(paths), pa.string()),
        "role": pa.array([of.role] * len(paths), pa.string()),
        **path_columns(paths, exact=True),
        "image": pa.array(of.images[rows], pa.string()),
        "label": pa.array(of.labels[rows], pa.string()),
        "score": _known(of.score[rows]),
        "group": pa.array(of.group[rows], pa.int64(), mask=of.group[rows] == 0),
        "x": _known(of.points[rows, 0]),
        "y": _known(of.points[rows, 1]),
        **{f"score_{name}": _known(of.scores[name][rows]) for name in detectors},
        "features": pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), block.shape[1]),
    }
    return pa.table(columns, schema=schema)


def _schema(
    detectors: Sequence[str], width: int, encoder: Mapping[str, Any], preprocessing: Mapping[str, Any]
) -> pa.Schema:
    fields = {
        "set": pa.string(),
        "role": pa.string(),
        "path": pa.string(),
        "path_bytes": pa.binary(),
        "image": pa.string(),
        "label": pa.string(),
        "score": pa.float64(),
        "group": pa.int64(),
        "x": pa.float64(),
        "y": pa.float64(),
        **{f"score_{name}": pa.float64() for name in detectors},
        "features": pa.list_(pa.float32(), width),
    }
    metadata = {"encoder": json.dumps(encoder, default=str), "preprocessing": json.dumps(preprocessing)}
    return pa.schema(list(fields.items()), metadata=metadata)


def _known(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.float64(), mask=np.isnan(values))
