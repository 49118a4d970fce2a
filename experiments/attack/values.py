"""What every detector says of the images before and after an attack."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clip_ood.detectors.names import ABOUT
from clip_ood.experiments.attack.plan import AFTER, BEFORE
from clip_ood.metrics.ood import ood_metrics
from clip_ood.runs.run_folder import read_scores

PLAIN = ""  # the condition of images as they were saved, scored by the run itself


@dataclass(frozen=True)
class Row:
    """A detector under a condition: AUROC and FPR95 before and after (fractions), the share of the OOD images rejected before,
    at the threshold that accepts 95 % of the ID test images, and `success`, the share of those accepted after."""

    condition: str
    detector: str
    n_id: int
    n_ood: int
    auroc_before: float
    auroc_after: float
    fpr95_before: float
    fpr95_after: float
    rejected_before: float
    success: float | None


class Scores:
    """scores.parquet of a run, by set."""

    def __init__(self, run: Path) -> None:
        table = read_scores(run)
        self.detectors = [name for name in table.column_names if name not in ABOUT]
        self._columns = {name: table[name].to_numpy() for name in table.column_names}

    def of(self, images: str, detector: str) -> Tensor:
        """The scores of a set (n,), by path: the order of the saved images' positions."""
        rows = self._columns["set"] == images
        order = np.argsort(self._columns["path"][rows])
        return torch.from_numpy(self._columns[detector][rows][order])

    def has(self, images: str) -> bool:
        return bool((self._columns["set"] == images).any())


def compare(condition: str, detector: str, of_id: Tensor, before: Tensor, after: Tensor) -> Row:
    """One row, from scores of ID test images (m,) and of the same n images before and after."""
    first, second = ood_metrics(of_id, before), ood_metrics(of_id, after)
    threshold = of_id.sort().values[int(0.05 * len(of_id))]
    rejected = before < threshold
    fooled = rejected & (after >= threshold)
    return Row(
        condition,
        detector,
        len(of_id),
        len(after),
        first["auroc"].value,
        second["auroc"].value,
        first["fpr95"].value,
        second["fpr95"].value,
        rejected.double().mean().item(),
        (fooled.sum() / rejected.sum()).item() if rejected.any() else None,
    )


def rows_of(runs: dict[str, Path], defences: list[str], exact: dict[str, Tensor]) -> list[Row]:
    """A row for each condition and detector: plain, every other run of `runs`, every defence, and `exact`, the scores of the
    pixels before they were rounded."""
    rows = []
    for condition, folder in runs.items():
        scores = Scores(folder)
        rows += [
            compare(condition, name, scores.of("id_test", name), scores.of(BEFORE, name), scores.of(AFTER, name))
            for name in scores.detectors
        ]
    scores = Scores(runs[PLAIN])
    for defence in defences:
        sets = f"id_{defence}", f"{BEFORE}_{defence}", f"{AFTER}_{defence}"
        rows += [
            compare(f"through {defence}", name, *(scores.of(each, name) for each in sets)) for name in scores.detectors
        ]
    return rows + [
        compare("not rounded to 8 bits", name, scores.of("id_test", name), scores.of(BEFORE, name), exact[name])
        for name in scores.detectors
        if name in exact
    ]


def curve_of(run: Path, sets: dict[float, str]) -> dict[str, list[tuple[float, float]]]:
    """By detector: (x, AUROC) for each x and its image set, all cut to the pairs of the smallest set."""
    scores = Scores(run)
    fewest = min(len(scores.of(name, scores.detectors[0])) for name in sets.values())
    return {
        detector: [
            (x, ood_metrics(scores.of("id_test", detector), scores.of(name, detector)[:fewest])["auroc"].value)
            for x, name in sorted(sets.items())
        ]
        for detector in scores.detectors
    }


def as_dicts(rows: list[Row]) -> list[dict]:
    return [asdict(row) for row in rows]
