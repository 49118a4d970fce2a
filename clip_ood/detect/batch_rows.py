"""Batches of new images as rows of a table, whose cells are texts and bytes: how batches go from one machine to another."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from clip_ood.data.inputs import Source
from clip_ood.data.readers.objects import Object
from clip_ood.data.readers.on_disk import Place
from clip_ood.data.readers.parquet_rows import Row, place_of
from clip_ood.detect.batches import NewImageBatch, SourceBatch
from clip_ood.files.unreadable import Passing

BATCH, IMAGES, SHAPE, ERRORS, CONTENTS = "batch", "images", "shape", "errors", "contents"


def row_of(batch: SourceBatch) -> dict[str, Any]:
    """Returns the row of a batch that nobody has read. Addresses have their signatures, as it is nowhere written down."""
    described = [[each.path, each.inside, _cells(each.place), each.reason] for each in batch.sources]
    return {BATCH: json.dumps([described, batch.part, batch.last])}


def _cells(place: Place | Row | Object) -> list[Any]:
    return [place.address.whole, *list(place)[1:]] if isinstance(place, Object) else list(place)


def read_row_of(batch: NewImageBatch) -> dict[str, Any]:
    """Returns the row of a batch whose images (B, 3, H, W) were read, or none of them could be."""
    images = np.empty((0, 0, 0, 0), np.float32) if batch.images is None else batch.images.numpy()
    return row_of(batch.batch) | {
        IMAGES: images.astype(np.float32, copy=False).tobytes(),
        SHAPE: json.dumps(images.shape),
        ERRORS: json.dumps([[place, why, isinstance(why, Passing)] for place, why in batch.errors.items()]),
        CONTENTS: batch.contents.astype("<u8").tobytes(),
    }


def batch_of(row: dict[str, Any]) -> SourceBatch | NewImageBatch:
    """Returns the batch of a row, as it was before."""
    described, part, last = json.loads(row[BATCH])
    found = tuple(Source(path, inside, place_of(*place), reason) for path, inside, place, reason in described)
    batch = SourceBatch(found, part, last)
    if IMAGES not in row:
        return batch
    pixels = np.frombuffer(row[IMAGES], np.float32).reshape(json.loads(row[SHAPE]))
    contents = np.frombuffer(row[CONTENTS], "<u8").astype(np.uint64).reshape(-1, 2)
    images = torch.from_numpy(pixels.copy()) if len(pixels) else None
    errors = {place: Passing(why) if passes else why for place, why, passes in json.loads(row[ERRORS])}
    return NewImageBatch(images, batch, errors, contents)
