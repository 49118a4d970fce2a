"""Declares what results.json says of test-time methods, under `stream`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from clip_ood.errors import UserError
from clip_ood.files.records import Count, Record, Share, Text

Values = Annotated[list[Share], Field(min_length=1)]


class StreamRow(Record):
    """A method on an OOD set, or on the mean over them: a value for each order, and the images of a stream."""

    method: Text
    ood: Text
    auroc: Values
    fpr95: Values
    n_id: Count
    n_ood: Count


class Stream(Record):
    """Test-time methods on ID test images and each OOD set, shuffled together: a seed for each order, in the order of the values."""

    seeds: Annotated[list[int], Field(min_length=1)]
    batch_size: Annotated[int, Field(ge=1)]
    ood_share: Share | None
    methods: dict[Text, dict[str, Any]]
    rows: list[StreamRow]

    @model_validator(mode="after")
    def _has_each_order(self) -> Stream:
        if any(len(values) != len(self.seeds) for row in self.rows for values in (row.auroc, row.fpr95)):
            raise UserError("has rows with more or fewer values than orders")
        return self
