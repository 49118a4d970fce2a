"""Declares what results.json says of test-time methods, under `stream`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from clip_ood.errors import UserError
from clip_ood.files.records import Count, Record, Share, Text

Images = Annotated[float, Field(ge=0, lt=2**63)] | Count
Values = Annotated[list[Share], Field(min_length=1)]


class StreamRow(Record):
    """A method on an OOD set, or on the mean over them: a value for each order, and the images of a stream (over several seeds: their mean number)."""

    method: Text
    ood: Text
    auroc: Values
    fpr95: Values
    n_id: Images
    n_ood: Images


class Stream(Record):
    """Test-time methods on ID test images and each OOD set, shuffled together: a seed for each order, in the order of the values.

    Over several seeds of a run, `run_seeds` has the one in which each order was."""

    seeds: Annotated[list[int], Field(min_length=1)]
    run_seeds: list[int] | None = None
    batch_size: Annotated[int, Field(ge=1)]
    ood_share: Share | None
    methods: dict[Text, dict[str, Any]]
    rows: list[StreamRow]

    @model_validator(mode="after")
    def _has_each_order(self) -> Stream:
        if any(len(values) != len(self.seeds) for row in self.rows for values in (row.auroc, row.fpr95)):
            raise UserError("has rows with more or fewer values than orders")
        if self.run_seeds is not None and len(self.run_seeds) != len(self.seeds):
            raise UserError("does not say of each order in which seed of the run it was")
        return self
