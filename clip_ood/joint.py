"""Judges classes and rejections of an evaluation together: its joint metrics over all processes, with what cannot be said and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from clip_ood.class_predictions import HEAD, KNN, TEXT, predict
from clip_ood.metrics.confidences import CalibrationErrors
from clip_ood.metrics.intervals import interval
from clip_ood.metrics.joint import OF_ID, OF_SETS, OpenSetMetrics, RiskCoverage
from clip_ood.metrics.ood import MEAN, Estimate, mean_over_sets
from clip_ood.metrics.open_set import auoscr_influence
from clip_ood.metrics.ranking import rank_scores
from clip_ood.metrics.risk_coverage import OOD_COST
from clip_ood.outputs import Outputs, Reference
from clip_ood.scores import Scores
from clip_ood.table import numbered
from clip_ood.threads import one_thread

ALONE = ""  # in the place of an OOD set: of ID images alone
CALIBRATION_ERROR = "calibration_error"


@dataclass(frozen=True)
class JointRow:
    """The joint metrics of a detector on ID images alone (`ood` is empty), against an OOD set, or their mean over the OOD sets."""

    detector: str
    ood: str
    metrics: dict[str, Estimate]
    n_id: int
    n_ood: int


@dataclass(frozen=True)
class Joint:
    """The joint results of one evaluation.

    Attributes:
        predicted_by: what predicts the classes that are judged: head, text or knn; None where nothing does.
        n_id: the number of ID test images that have a label.
        rows: one a detector and OOD set.
        calibration_errors: by what predicts classes, fractions of the n_id images.
        absent: why a metric is not there, by its name.
        ood_cost: the cost of an accepted OOD image in `scod_aurc`.
    """

    predicted_by: str | None
    n_id: int
    rows: list[JointRow] = field(default_factory=list)
    calibration_errors: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    ood_cost: float = OOD_COST

    def values(self) -> dict[str, float]:
        """Returns every metric by the tag under which it is logged."""
        found = {f"id/{by}/{CALIBRATION_ERROR}": value for by, value in self.calibration_errors.items()}
        for row in self.rows:
            place = f"ood/{row.ood}/{row.detector}" if row.ood != ALONE else f"id/{row.detector}"
            found |= {f"{place}/{name}": each.value for name, each in row.metrics.items()}
        return found


class JointTable:
    """Holds the joint metrics of all detectors on one device.

    Args:
        detectors: their names.
        roles: the role of each set by its name; covariate-shifted ID is not judged.
        labelled: the number of ID test images that have a label.
        reference: what gives classes probabilities besides the head.
        device: where the metrics are kept.
    """

    def __init__(
        self,
        detectors: Sequence[str],
        roles: Mapping[str, str],
        labelled: int,
        reference: Reference,
        device: torch.device | str = "cpu",
    ) -> None:
        self.labelled, self.reference = labelled, reference
        self.predicted_by: str | None = None
        self._alone = RiskCoverage(list(detectors)).to(device)
        ood = [name for name, role in roles.items() if role == "ood"]
        self._of_set = {name: OpenSetMetrics(list(detectors)).to(device) for name in ood}
        self._errors, self._with_head = CalibrationErrors(), False

    @property
    def _unlabelled(self) -> str | None:
        """Says why no image can be classified right or wrong, or None."""
        names = self.reference.class_names
        if names is not None and len(names) == 1:
            return "there is a single class, so every prediction is right"
        return None if self.labelled else "the ID test images have no labels"

    def update_id(self, outputs: Outputs, scores: Scores, labels: Tensor) -> None:
        """Adds a batch of ID test images with their labels (n,), -1 where there is none."""
        classes = _judged_classes(scores)
        if self._unlabelled or classes is None:
            return
        self._with_head = outputs.logits is not None
        self.predicted_by = KNN if scores.predictions is None else HEAD if self._with_head else TEXT
        labels = labels.cpu()
        known = labels >= 0
        correct, indices = (classes == labels)[known], scores.indices[known]
        matrix = scores.matrix(self._alone.detectors)[known]
        self._alone.update(matrix, correct, indices)
        for metric in self._of_set.values():
            metric.update(matrix, True, correct, indices)
        for by in (HEAD, TEXT):
            if self._without_probabilities(by) is None:
                predicted, confidence = predict(outputs, self.reference.text_embeddings, self.reference.logit_scale, by)
                right = predicted.cpu() == labels
                self._errors.count(by, confidence[known.to(confidence.device)], right[known].to(confidence.device))

    def update_ood(self, name: str, scores: Scores) -> None:
        """Adds a batch of an OOD set."""
        metric = self._of_set[name]
        metric.update(scores.matrix(metric.detectors), False, indices=scores.indices)

    def keep(self, detectors: Sequence[str]) -> None:
        """Continues with only some of the detectors, the same ones in every process."""
        for metric in (self._alone, *self._of_set.values()):
            metric.keep(detectors)

    def compute(self, sizes: Mapping[str, int]) -> Joint:
        """Returns what can be said, without intervals, the same in every process; `sizes` are the numbers of images of the sets."""
        absent = self._absent()
        if self.predicted_by is None:
            return Joint(None, self.labelled, absent=absent)
        alone = {} if absent.keys() & set(OF_ID) else self._alone.compute()
        of_set = {name: metric.compute() for name, metric in self._of_set.items()}

        def row(detector: str, ood: str, found: Mapping[str, Tensor], names: Sequence[str]) -> JointRow:
            metrics = {name: Estimate(found[f"{detector}/{name}"].item()) for name in names}
            return JointRow(detector, ood, metrics, self.labelled, sizes[ood] if ood != ALONE else 0)

        rows = []
        for detector in self._alone.detectors:
            rows += [row(detector, ALONE, alone, OF_ID)] if alone else []
            rows += [row(detector, name, found, OF_SETS) for name, found in of_set.items()]
        errors = self._errors.compute()
        broken = {f"{CALIBRATION_ERROR} of {by}": why for by, why in errors.items() if isinstance(why, str)}
        errors = {by: value for by, value in errors.items() if not isinstance(value, str)}
        return _with_means(Joint(self.predicted_by, self.labelled, rows, errors, absent | broken))

    def _absent(self) -> dict[str, str]:
        errors = [f"{CALIBRATION_ERROR} of {by}" for by in (HEAD, TEXT)]
        if why := self._unlabelled or (None if self.predicted_by else "nothing predicts classes"):
            return dict.fromkeys((*OF_ID, *OF_SETS, *errors), why)
        found = {
            name: why for name, by in zip(errors, (HEAD, TEXT), strict=True) if (why := self._without_probabilities(by))
        }
        if self.labelled < 2:
            found |= dict.fromkeys(OF_ID, "a single ID test image has a label, and it takes two")
        if not self._of_set:
            found |= dict.fromkeys(OF_SETS, "there is no OOD set (data.ood)")
        return found

    def _without_probabilities(self, by: str) -> str | None:
        """Says why the head or the texts give classes no probabilities, or None."""
        if by == HEAD:
            return None if self._with_head else "the method has no head"
        if self.reference.text_embeddings is None:
            return "the classes have no text embeddings"
        return "the encoder has no logit scale" if self.reference.logit_scale is None else None


@one_thread()
def with_auoscr_intervals(
    joint: Joint,
    scored: Mapping[str, Scores],
    roles: Mapping[str, str],
    labels: Tensor,
    images: Mapping[str, Tensor] | None = None,
) -> Joint:
    """Returns the joint results with the interval of AUOSCR, from the scores of every image (see `auoscr_influence`).

    The other metrics have none: they are no means over images or pairs of them.

    Args:
        scored, roles: the scores and roles of all sets.
        labels: (n,) those of the scored ID test images, -1 where there is none.
        images: numbers (n,) of the scored images of every set, the same where an image stands in two sets.
    """
    if not joint.rows:
        return joint
    tested = "id" if "id" in roles.values() else "train"
    inside, name = next((scored[name], name) for name, role in roles.items() if role == tested)
    numbers, known = numbered(images or {}, scored), labels >= 0
    correct = (_judged_classes(inside) == labels)[known]
    rows = []
    for row in joint.rows:
        if row.ood not in (ALONE, MEAN):
            ranking = rank_scores(inside.scores[row.detector][known], scored[row.ood].scores[row.detector])
            which = (numbers[name][known], numbers[row.ood]) if numbers else (None, None)
            source = auoscr_influence(ranking, correct, *which)
            found = replace(row.metrics["auoscr"], source=source)
            if ends := interval([source]):
                found = replace(found, low=ends[0], high=ends[1])
            row = replace(row, metrics=row.metrics | {"auoscr": found})
        rows.append(row)
    return _with_means(replace(joint, rows=rows))


def _judged_classes(scores: Scores) -> Tensor | None:
    """Returns the classes (n,) that count as predicted: by the head or the texts, otherwise by the nearest neighbours."""
    return scores.votes if scores.predictions is None else scores.predictions


def _with_means(joint: Joint) -> Joint:
    """The joint results with a row for each detector's mean over the OOD sets, after those of its sets."""
    rows = []
    for detector in dict.fromkeys(row.detector for row in joint.rows):
        own = [row for row in joint.rows if row.detector == detector and row.ood != MEAN]
        of_set = {row.ood: row.metrics for row in own if row.ood != ALONE}
        rows += own
        if of_set:
            rows.append(JointRow(detector, MEAN, mean_over_sets(of_set), joint.n_id, sum(row.n_ood for row in own)))
    return replace(joint, rows=rows)
