"""Declares what results.json says of accuracy and rejection together, under `joint`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from clip_ood.files.records import Count, Record, Share, Text


class JointRow(Record):
    """The joint metrics of a detector on ID images alone (`ood` is empty), against an OOD set, or their mean; None: not in this row."""

    detector: Text
    ood: Text
    aurc: Share | None
    augrc: Share | None
    auoscr: Share | None
    scod_aurc: Share | None
    n_id: Count
    n_ood: Count
    intervals: dict[Text, Annotated[list[Share], Field(min_length=2, max_length=2)]]


class CalibrationError(Record):
    """The expected calibration error of what predicts classes, over this many bins of n ID test images."""

    by: Literal["head", "text"]
    value: Share
    n: Count
    bins: Count


class Absent(Record):
    """Why there is no such metric."""

    metric: Text
    reason: Text


class Joint(Record):
    """What judges classes and rejections together, by the n_id ID test images with a label."""

    predicted_by: Literal["head", "text", "knn"] | None
    n_id: Count
    ood_cost: Share
    calibration_errors: list[CalibrationError]
    absent: list[Absent]
    rows: list[JointRow]
