"""Where does a detector fail? Its figures for each ID class, and for each folder of the OOD sets: classes.csv."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from clip_ood.files.writing import written_text
from clip_ood.files.written_names import cells
from clip_ood.metrics.influence import auroc_influence_of_sorted
from clip_ood.metrics.intervals import interval, share_interval
from clip_ood.runs.scores import ScoredSet

FIGURES = ("accuracy", "accepted", "flagged", "auroc")
COLUMNS = (
    "set",
    "role",
    "class",
    "detector",
    "n",
    *(f"{name}{end}" for name in FIGURES for end in ("", "_low", "_high")),
)


@dataclass(frozen=True)
class Figure:
    """A share or an AUROC, a fraction, with the ends of its 95 % interval (None: there is none)."""

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def share(cls, count: int, n: int) -> Figure:
        """A share with its `share_interval`."""
        return cls(count / n, *share_interval(count, n))


@dataclass(frozen=True)
class ClassRow:
    """A detector on the n images of one class of an ID set, or of one folder of an OOD set.

    Attributes:
        set, role, name: the set, its role (id, csid, ood), and the class; of an OOD set the folder in it ("" for none).
        accuracy: of the predicted classes; the same for all detectors. None where the images have no labels, or nothing predicts some.
        accepted, flagged: the share of ID images at or above the detector's calibrated threshold, and of OOD images below it. None
            without a threshold.
        auroc: of the OOD images against all ID test images.
    """

    set: str
    role: str
    name: str
    detector: str
    n: int
    accuracy: Figure | None = None
    accepted: Figure | None = None
    flagged: Figure | None = None
    auroc: Figure | None = None


def class_rows(
    sets: Sequence[ScoredSet],
    thresholds: Mapping[str, float],
    by_folds: Collection[str] = (),
    detectors: Sequence[str] = (),
) -> list[ClassRow]:
    """Returns a row for each class or folder and detector, in the order of the sets and of their images.

    Args:
        sets: those of a run's scores.parquet.
        thresholds: of the detectors that are calibrated.
        by_folds: detectors whose scores of ID images come from several folds, so that they have no AUROC here.
        detectors: which ones; by default all.
    """
    id_test = next(each for each in sets if each.role == "id")
    names = detectors or list(id_test.scores)
    inside = {name: torch.from_numpy(np.sort(id_test.scores[name])) for name in names if name not in by_folds}
    rows = []
    for each in sets:
        for name, places in _groups(each):
            accuracy = None if each.role == "ood" else _accuracy(each, name, places)
            for detector in names:
                found, threshold = each.scores[detector][places], thresholds.get(detector)
                row = ClassRow(each.name, each.role, name, detector, len(places), accuracy)
                if threshold is not None:
                    accepted = int((found >= threshold).sum())
                    row = replace(row, **_shares(each.role, accepted, len(places)))
                if each.role == "ood" and detector in inside:
                    row = replace(row, auroc=_auroc(inside[detector], torch.from_numpy(found)))
                rows.append(row)
    return rows


def write_classes(path: Path, rows: Sequence[ClassRow]) -> None:
    """Writes the rows as CSV, with shares and AUROCs in percent with 2 decimals, empty where a row has none."""
    with written_text(path) as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            line = {"set": row.set, "role": row.role, "class": row.name, "detector": row.detector, "n": row.n}
            for name in FIGURES:
                figure = getattr(row, name)
                for end, part in (("", "value"), ("_low", "low"), ("_high", "high")):
                    value = None if figure is None else getattr(figure, part)
                    line[name + end] = "" if value is None else f"{100 * value:.2f}"
            writer.writerow(cells(line, ("set", "class", "detector")))


def _groups(of_set: ScoredSet) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the classes of an ID set, or the folders of an OOD set, with the places of their images."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, (path, label) in enumerate(zip(of_set.paths, of_set.labels, strict=True)):
        name = _folder(path) if of_set.role == "ood" else label
        if name is not None:
            places[name].append(place)
    yield from ((name, np.array(found)) for name, found in places.items())


def _folder(path: str) -> str:
    """The folder of an image within its set, or within its shard."""
    first, _, rest = path.partition("/")
    return (rest if first.endswith(".tar") else path).rpartition("/")[0]


def _accuracy(of_set: ScoredSet, name: str, places: np.ndarray) -> Figure | None:
    predicted = [of_set.predictions[place] for place in places]
    return None if None in predicted else Figure.share(predicted.count(name), len(places))


def _shares(role: str, accepted: int, n: int) -> dict[str, Figure]:
    return {"flagged": Figure.share(n - accepted, n)} if role == "ood" else {"accepted": Figure.share(accepted, n)}


def _auroc(inside: torch.Tensor, outside: torch.Tensor) -> Figure:
    influence = auroc_influence_of_sorted(inside, outside)
    return Figure(influence.value, *(interval([influence]) or (None, None)))
