"""Where does the default detector fail? Its worst ID classes, and the worst folders of the OOD sets, for a page."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from clip_ood.report.results import Value, with_interval
from clip_ood.runs.class_table import ClassRow, Figure, class_rows
from clip_ood.runs.scores import ScoredSet

SHOWN = 5  # classes, and folders; the others are folded


@dataclass(frozen=True)
class Line:
    """A class or folder of n images of a set, with two figures: accuracy and the accepted share, or the flagged share and AUROC."""

    set: str
    name: str
    n: int
    figures: tuple[Value, Value]


@dataclass(frozen=True)
class Failures:
    """The ID classes and the OOD folders, the worst first; a list is empty where there is nothing to compare. `calibrated`: whether
    there is a threshold that accepts and flags."""

    classes: list[Line]
    folders: list[Line]
    calibrated: bool
    shown: int = SHOWN


def failures(
    scored: Sequence[ScoredSet], calibration: dict[str, Any] | None, by_folds: Collection[str], detector: str
) -> Failures | None:
    """Returns the classes and folders of a run on which a detector fails most; None if there are neither two classes nor two folders.

    The worst are those whose interval ends lowest: a class of few images, of which little is known, does not come first by chance.
    It is the interval of the share that the calibrated threshold accepts (of OOD: flags) or, without one, by accuracy (of OOD: AUROC).
    """
    thresholds = (calibration or {}).get("thresholds") or {}
    rows = class_rows(scored, thresholds, by_folds, [detector])
    classes = sorted((row for row in rows if row.role != "ood"), key=lambda row: _worst(row.accepted, row.accuracy))
    folders = sorted((row for row in rows if row.role == "ood"), key=lambda row: _worst(row.flagged, row.auroc))
    sets = {row.set for row in folders}
    found = Failures(
        [_line(row, row.accuracy, row.accepted) for row in classes] if len(classes) > 1 else [],
        [_line(row, row.flagged, row.auroc) for row in folders] if len(folders) > len(sets) else [],
        detector in thresholds,
    )
    return found if found.classes or found.folders else None


def _worst(*figures: Figure | None) -> tuple[float, ...]:
    return tuple(1.0 if each is None else each.value if each.high is None else each.high for each in figures)


def _line(row: ClassRow, *figures: Figure | None) -> Line:
    first, second = (
        Value("–", "", "") if each is None else with_interval(each.value, each.low, each.high) for each in figures
    )
    return Line(row.set, row.name, row.n, (first, second))
