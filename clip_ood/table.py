"""Computes the table of an evaluation: its metrics over all processes, and its rows, with intervals if they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clip_ood.errors import UserError
from clip_ood.metrics.curves import OF_SCORES
from clip_ood.metrics.metric import OODMetrics
from clip_ood.metrics.ood import MEAN, Estimate, mean_over_sets, ood_metrics
from clip_ood.scores import Scores


@dataclass(frozen=True)
class Row:
    """One line of the table: a detector against one OOD set (or their mean) in one setting."""

    detector: str
    setting: str
    ood: str
    group: str
    metrics: dict[str, Estimate]
    n_id: int
    n_ood: int


class TableMetrics:
    """Holds an `OODMetrics` for each setting and OOD set, over all detectors, on one device.

    Args:
        detectors: their names.
        roles: the role of each set by its name: id (or, without, train), csid, ood; other roles are ignored.
    """

    def __init__(self, detectors: Sequence[str], roles: Mapping[str, str], device: torch.device | str = "cpu") -> None:
        self.detectors = list(detectors)
        self.positives = settings_of(roles)
        ood = [name for name, role in roles.items() if role == "ood"]
        self.metrics = {
            (setting, name): OODMetrics(self.detectors).to(device) for setting in self.positives for name in ood
        }

    def update(self, name: str, batch: Scores) -> None:
        """Adds a batch of the set `name`; every process must add one of every set, an empty one if it has no image."""
        scores = batch.matrix(self.detectors)
        for (setting, ood), metric in self.metrics.items():
            positives = self.positives[setting]
            if name in positives:
                metric.update(scores, True, batch.indices * len(positives) + positives.index(name))
            elif name == ood:
                metric.update(scores, False, batch.indices)

    def keep(self, detectors: Sequence[str]) -> None:
        """Continues with only some of the detectors, the same ones in every process."""
        self.detectors = list(detectors)
        for metric in self.metrics.values():
            metric.keep(detectors)

    def compute(self) -> dict[tuple[str, str], dict[str, Tensor]]:
        """Returns, by setting and OOD set, the values of `OODMetrics.compute`, the same in every process.

        Raises: ValueError if a detector's scores are NaN or infinite; it names the detector and the OOD set.
        """
        values = {}
        for (setting, ood), metric in self.metrics.items():
            try:
                values[setting, ood] = metric.compute()
            except ValueError as error:
                raise UserError(f"ID images against {ood}: {error}") from error
        return values


def settings_of(roles: Mapping[str, str]) -> dict[str, list[str]]:
    """Returns the sets that are positives in each setting, from set name -> role; csid sets are only in full_spectrum.

    >>> settings_of({"id_test": "id", "v2": "csid", "svhn": "ood"})
    {'standard': ['id_test'], 'full_spectrum': ['id_test', 'v2']}
    """
    tested = "id" if "id" in roles.values() else "train"  # without ID test images
    standard = [name for name, role in roles.items() if role == tested]
    shifted = [name for name, role in roles.items() if role == "csid"]
    return {"standard": standard} | ({"full_spectrum": standard + shifted} if shifted else {})


def table_rows(
    values: Mapping[tuple[str, str], Mapping[str, Tensor]],
    detectors: Sequence[str],
    roles: Mapping[str, str],
    groups: Mapping[str, str],
    sizes: Mapping[str, int],
) -> list[Row]:
    """Returns a row for each setting, detector and OOD set, and one for the mean over OOD sets, without intervals.

    `values` are those of `TableMetrics.compute`; `sizes` are the numbers of images of the sets.
    """
    rows = []
    for setting, positives in settings_of(roles).items():
        n_id = sum(sizes[name] for name in positives)
        sets = [ood for of_setting, ood in values if of_setting == setting]
        for detector in detectors if sets else []:
            of_set = {
                ood: {metric: Estimate(values[setting, ood][f"{detector}/{metric}"].item()) for metric in OF_SCORES}
                for ood in sets
            }
            rows += [Row(detector, setting, ood, groups[ood], of_set[ood], n_id, sizes[ood]) for ood in sets]
            total = sum(sizes[ood] for ood in sets)
            rows.append(Row(detector, setting, MEAN, "", mean_over_sets(of_set), n_id, total))
    return rows


def row_values(rows: Sequence[Row]) -> dict[str, float]:
    """Returns the metrics of the standard setting by the tag under which they are logged."""
    return {
        f"ood/{row.ood}/{row.detector}/{metric}": estimate.value
        for row in rows
        if row.setting == "standard"
        for metric, estimate in row.metrics.items()
    }


def with_intervals(
    rows: Sequence[Row],
    scored: Mapping[str, Scores],
    roles: Mapping[str, str],
    thresholds: Mapping[str, float] | None = None,
    images: Mapping[str, Tensor] | None = None,
    watch=lambda steps: steps,
) -> list[Row]:
    """Returns the rows of `table_rows` with the intervals of `ood_metrics`, from the scores of every image, and f1 at the `thresholds` of
    the detectors, where there are any.

    `images` has numbers (n,) of the scored images of every set, the same where an image stands in two sets; without them all are
    different. `watch` wraps the steps in a progress bar. Where a set has a single image, it has no interval, and neither has the mean.
    """
    numbers = numbered(images or {}, scored)
    positives, found, of_set = settings_of(roles), [], {}
    for row in watch(rows):
        if row.ood == MEAN:
            found.append(replace(row, metrics=mean_over_sets(of_set)))
            of_set = {}
            continue
        names = positives[row.setting]
        inside = torch.cat([scored[name].scores[row.detector] for name in names])
        which = (torch.cat([numbers[name] for name in names]), numbers[row.ood]) if numbers else (None, None)
        threshold = (thresholds or {}).get(row.detector)
        drawn = ood_metrics(inside, scored[row.ood].scores[row.detector], threshold, *which)
        known = {name: replace(drawn[name], value=of_metric.value) for name, of_metric in row.metrics.items()}
        of_set[row.ood] = drawn | known
        found.append(replace(row, metrics=of_set[row.ood]))
    return found


def numbered(images: Mapping[str, Tensor], scored: Mapping[str, Scores]) -> dict[str, Tensor]:
    """The numbers of images, counted from 0 on; none where they are not known of every set."""
    names = [name for name in scored if name in images]
    if not names or len(names) < len(scored):
        return {}
    sizes = [len(images[name]) for name in names]
    _, counted = torch.cat([images[name] for name in names]).unique(return_inverse=True)
    return dict(zip(names, counted.split(sizes), strict=True))
