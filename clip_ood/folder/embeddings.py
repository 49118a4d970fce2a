"""Writes everything about the images of a folder to one Parquet file, for FiftyOne, Embedding Atlas, DuckDB and others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from clip_ood.features.rows import Rows
from clip_ood.files.writing import written_whole
from clip_ood.files.written_names import path_columns
from clip_ood.folder.ranking import Ranking
from clip_ood.folder.suspects import Folder

BLOCK = 4096  # images written at once


def write_embeddings(
    path: Path, folder: Folder, ranking: Ranking, features: Rows, encoder: Mapping[str, Any], preprocessing: str
) -> None:
    """Writes a row for each of N images, in their order, with the features (N, D) as a fixed-size list of float32.

    Columns: path (path_bytes, where it is not UTF-8), image (the identity of the content, in hexadecimal), label, score (the consensus,
    higher means more in-distribution), group (the number of the group apart), one for each detector, named `score_<detector>`,
    and features. What is not known is null. The metadata hold `encoder`, its fingerprint as JSON, and `preprocessing`. Rows are written
    block by block. Raises: OSError, which names the file.
    """
    group = np.zeros(len(folder.paths), np.int64)
    for number, each in enumerate(ranking.groups, start=1):
        group[each.images] = number
    schema = _schema(folder, features.width, encoder, preprocessing)
    with written_whole(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for start in range(0, len(folder.paths), BLOCK):
            places = np.arange(start, min(start + BLOCK, len(folder.paths)))
            block = features.take(torch.from_numpy(places)).float().numpy()
            columns = {
                **path_columns([folder.paths[place] for place in places], exact=True),
                "image": pa.array([folder.image(place) for place in places], pa.string()),
                "label": pa.array([folder.labels[place] for place in places], pa.string()),
                "score": _known(ranking.score[places]),
                "group": pa.array(group[places], pa.int64(), mask=group[places] == 0),
                **{f"score_{name}": _known(values[places]) for name, values in folder.scores.items()},
                "features": pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), features.width),
            }
            writer.write_table(pa.table(columns, schema=schema))


def _schema(folder: Folder, width: int, encoder: Mapping[str, Any], preprocessing: str) -> pa.Schema:
    fields = {
        "path": pa.string(),
        "path_bytes": pa.binary(),
        "image": pa.string(),
        "label": pa.string(),
        "score": pa.float64(),
        "group": pa.int64(),
        **{f"score_{name}": pa.float64() for name in folder.scores},
        "features": pa.list_(pa.float32(), width),
    }
    metadata = {"encoder": json.dumps(encoder, default=str), "preprocessing": preprocessing}
    return pa.schema(list(fields.items()), metadata=metadata)


def _known(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.float64(), mask=np.isnan(values))
