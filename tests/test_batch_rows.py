"""Batches of new images survive the way to another machine and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clip_ood.data.inputs import Source
from clip_ood.data.readers.objects import Object
from clip_ood.data.readers.on_disk import Place
from clip_ood.data.readers.parquet_rows import Row
from clip_ood.detect.batch_rows import batch_of, read_row_of, row_of
from clip_ood.detect.batches import NewImageBatch, SourceBatch
from clip_ood.files.remote.address import Address
from clip_ood.files.unreadable import NO_MEMORY, Passing

SOURCES = SourceBatch(
    (
        Source("caf\udce9.png", "caf\udce9.png", Place("caf\udce9.png")),
        Source("a.zip/b.png", "b.png", Place("a.zip", 7, 9, 123, 11)),
        Source("x.parquet/000003", "x.parquet/000003", Row("x.parquet", 0, 3, "image")),
        Source("notes.doc", "notes.doc", Place("notes.doc"), "no image by its name"),
    ),
    5,
    True,
)


def test_sources_are_as_before():
    again = batch_of(row_of(SOURCES))
    assert again == SOURCES and [type(each.place) for each in again.sources] == [Place, Place, Row, Place]


@pytest.mark.parametrize("images", [torch.rand(3, 3, 4, 5), None])
def test_images_are_as_before(images):
    contents = np.arange(6, dtype=np.uint64).reshape(3, 2) if images is not None else np.empty((0, 2), np.uint64)
    batch = NewImageBatch(images, SOURCES, {1: "damaged", 2: NO_MEMORY, 3: "no image by its name"}, contents)
    again = batch_of(read_row_of(batch))
    assert {place: type(why) for place, why in again.errors.items()} == {1: str, 2: Passing, 3: str}
    assert again.batch == SOURCES and again.errors == batch.errors and (again.contents == contents).all()
    assert again.images is images is None or torch.equal(again.images, images)


def test_an_address_keeps_its_signature_on_its_way():
    place = Object(Address("https", "example.org/a.jpg", "X-Amz-Signature=1f"), 5, "v")
    batch = SourceBatch((Source("https://example.org/a.jpg", "a.jpg", place),), 0, True)
    assert batch_of(row_of(batch)) == batch
