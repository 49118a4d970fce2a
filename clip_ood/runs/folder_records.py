"""Declares what results.json says of a folder that was scored without itself: suspects, labels, and classes that were held out."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from clip_ood.files.records import Count, Record, Share, Text


class Checked(Record):
    """How many labels were checked, are doubtful (labels.csv), and are estimated to be wrong."""

    checked: Count
    doubtful: Count
    wrong: Annotated[float, Field(ge=0)]


class Ranked(Record):
    """What suspects.csv, groups.csv and labels.csv hold; variance is the share of it that the map shows, and vocabulary the number of
    words among which the nearest were sought."""

    images: Count
    groups: list[Count]
    variance: Share
    labels: Checked | None = None
    vocabulary: Count | None = None


class HeldOutGroup(Record):
    """A group of classes whose images played OOD images, and the AUROC of each detector."""

    classes: list[Text]
    n_id: Count
    n_ood: Count
    auroc: dict[Text, Share]


class HeldOut(Record):
    """The groups of classes that were held out, and the mean AUROC over them by detector, the highest first."""

    groups: Annotated[list[HeldOutGroup], Field(min_length=1)]
    mean: dict[Text, Share]
