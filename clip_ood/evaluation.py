"""Computes scores from outputs of a bank, ID images and OOD sets, with detectors that are fitted and score together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from clip_ood.calibration import Calibration, Choice
from clip_ood.class_predictions import HEAD, KNN, TEXT, ClassPredictor, predict, voted
from clip_ood.detectors.bank import Bank
from clip_ood.detectors.build import Omitted, build_detectors
from clip_ood.detectors.detector import Detector, score_together, take_in
from clip_ood.detectors.exchange import ALONE, Exchange
from clip_ood.detectors.names import read_specs
from clip_ood.detectors.statistic import Statistic, share, statistics_of
from clip_ood.errors import UserError
from clip_ood.joint import Joint
from clip_ood.outputs import Outputs, Reference
from clip_ood.scores import Scores
from clip_ood.table import Row

WHY = {  # what is not finite -> the likely cause
    **dict.fromkeys(
        ("features", "embeddings", "layers", "tokens"),
        "the encoder overflows (take backbone.precision=fp32) or its weights are damaged",
    ),
    **dict.fromkeys(("logits", "weight", "bias"), "training diverged (take a smaller learning rate)"),
    "text_embeddings": "learnt prompts diverged (take a smaller learning rate), or the encoder of texts overflows (take backbone.precision=fp32)",
}


@dataclass
class DetectorSuite:
    """Detectors that are fitted on a bank and score together; they are built from the first outputs that they see.

    Whatever several of them learn is taken in once, as `statistics`. If an output of the model is not finite, `fit` leaves out
    the detectors that need it; after the fit, they score NaN for it.
    """

    reference: Reference
    specs: Sequence[str | Mapping[str, Any]] | None = None
    detectors: dict[str, Detector] | None = None
    omitted: list[Omitted] = field(default_factory=list)
    statistics: list[Statistic] = field(default_factory=list)
    choices: dict[str, Choice] = field(default_factory=dict)  # by column, of what `choose` settled
    bad: dict[str, Tensor] = field(default_factory=dict)  # rows of the bank that are not finite, by field
    loses_head: bool = False  # logits come from a head that the reference does not describe, which no folder keeps
    later: frozenset[str] = frozenset()  # fields of outputs to be scored that those of the bank may lack

    def update(self, outputs: Outputs) -> None:
        """Takes in a batch of the bank (see `Detector.update`)."""
        if self.detectors is None:
            self._build(outputs)
        outputs, bad = _finite(outputs)
        self.bad = {name: self.bad.get(name, 0) + rows.sum() for name, rows in bad.items()}
        take_in(self.detectors.values(), outputs)

    def fit(self, exchange: Exchange = ALONE) -> None:
        """Fits all detectors, once, after the last update, for several processes together.

        A detector that cannot be fitted on these images is left out, with the reason. Raises ValueError if none is left.
        """
        for statistic in self.statistics:
            statistic.join(exchange)
        self.bad = {name: int(exchange.sum(rows)) for name, rows in self.bad.items()}
        unusable = {name: why for name, each in self.detectors.items() if (why := self._unusable(each)) is not None}
        self.leave_out(unusable)
        reasons = {}
        for name, detector in self.detectors.items():
            try:
                detector.fit()
            except (ValueError, torch.linalg.LinAlgError) as error:
                reasons[name] = str(error).removeprefix(f"{detector.name or type(detector).__name__}: ")
        self.leave_out(reasons)

    def leave_out(self, reasons: Mapping[str, str]) -> None:
        """Continues without the detectors that have a reason, which is kept for the results. Raises ValueError if none is left."""
        self.omitted += [Omitted(name, reason) for name, reason in reasons.items()]
        self.detectors = {name: each for name, each in self.detectors.items() if name not in reasons}
        self._check_any_left()

    def score(self, outputs: Outputs, bank_labels: Tensor | None = None) -> Scores:
        """Returns scores of a batch, on the CPU, with the votes of its neighbours if `bank_labels` (N,) are given.

        `bank_labels` are classes by image-set row of the bank's images, -1 for one without. There are no votes if none has a
        class, or if no detector keeps the bank of g: a layer's neighbours do not vote.
        """
        outputs, bad = _finite(outputs)
        vote = self._vote(bank_labels)
        predicted = None if self.bad.get("logits") else predict(outputs, self.reference.text_embeddings)
        values = [value.cpu() for value in score_together(list(self.detectors.values()), outputs, vote)]
        for number, detector in enumerate(self.detectors.values()):
            for name in bad.keys() & set(detector.needs):
                values[number].masked_fill_(bad[name].cpu(), torch.nan)
        return Scores(
            indices=outputs.indices.cpu(),
            predictions=None if predicted is None else predicted[0].cpu(),
            scores=dict(zip(self.detectors, values, strict=False)),
            votes=values[-1][:, 0].long() if vote else None,
        )

    def _unusable(self, detector: Detector) -> str | None:
        """Returns why an output of the model that a detector needs is not finite, or None if it is."""
        for name in detector.needs:
            if self.bad.get(name):
                return f"{name} of {self.bad[name]:,} ID training images are not finite: {WHY[name]}"
            known = getattr(self.reference, name, None)
            if isinstance(known, Tensor) and not known.isfinite().all():
                return f"{name} in the reference is not finite: {WHY.get(name, WHY['features'])}"
        return None

    def _vote(self, bank_labels: Tensor | None) -> list[Callable[[Outputs], Tensor]]:
        banks = (each for each in self.statistics if isinstance(each, Bank) and each.layer is None)  # classes go by g
        bank = next(banks, None)
        if bank is None or self.bad.get("features") or bank_labels is None or not (bank_labels >= 0).any():
            return []
        return [lambda rows: voted(rows, bank, bank_labels)]

    def classes(self, outputs: Outputs, scores: Scores) -> dict[str, Tensor]:
        """Returns the classes (n,) of a scored batch by everything that predicts some and can be saved: head, text, knn."""
        found = {} if outputs.logits is None or self.loses_head else {HEAD: scores.predictions}
        if (text := predict(outputs, self.reference.text_embeddings, by=TEXT)) is not None:
            found[TEXT] = text[0].cpu()
        keep = [each for each in self.detectors.values() if each.portable and each.searches and each.layer is None]
        searched = any(isinstance(each, Bank) for detector in keep for each in statistics_of(detector).values())
        if scores.votes is not None and searched and self.reference.class_names is not None:
            found[KNN] = scores.votes
        return found

    def choose(self, aurocs: Mapping[str, float]) -> dict[str, str]:
        """Keeps, of the candidates for a column, the one with the highest AUROC (ties: the first).

        `aurocs` are those of ID val against OOD val by detector; neither may be a set that the table reports on (a test set). A
        note says what was chosen among which. Returns the detectors that are kept: their earlier name -> their name now.
        """
        kept = {label: label for label in self.detectors}
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for spec in read_specs(self.specs):
            if spec.chosen_as is not None and spec.label in self.detectors:
                found[spec.chosen_as][spec.label] = aurocs[spec.label]
        for column, values in found.items():
            best = max(values, key=values.get)
            self.choices[column] = Choice(len(values), values[best])
            kept = {
                label: column if label == best else name
                for label, name in kept.items()
                if label == best or label not in values
            }
            self.detectors = {
                column if label == best else label: detector
                for label, detector in self.detectors.items()
                if label == best or label not in values
            }
            among = ", ".join(f"{label} {100 * value:.2f}" for label, value in values.items())
            self.detectors[column].notes.append(f"{best}, chosen by AUROC of ID val against ood_val: {among}")
        return kept

    @property
    def notes(self) -> dict[str, list[str]]:
        """Returns what the table must say of a detector, by its name."""
        return {name: list(detector.notes) for name, detector in self.detectors.items() if detector.notes}

    def _build(self, outputs: Outputs) -> None:
        given = {name for value in (outputs, self.reference) for name, part in vars(value).items() if part is not None}
        if outputs.labels is not None and not self._has_classes(outputs.labels):
            given.discard("labels")
        self.loses_head = outputs.logits is not None and not self.reference.has_head
        self.detectors, self.omitted = build_detectors(self.specs, self.reference, given | self.later)
        self._check_any_left()
        self.statistics = share(self.detectors.values())

    def _check_any_left(self) -> None:
        if not self.detectors:
            reasons = "; ".join(f"{each.detector}: {each.reason}" for each in self.omitted)
            raise UserError(f"None of the detectors can run on this model. {reasons}")

    def _has_classes(self, labels: Tensor) -> bool:
        return self.reference.class_names is not None or bool((labels >= 0).any())


def _finite(outputs: Outputs) -> tuple[Outputs, dict[str, Tensor]]:
    """Returns the outputs with zeros in rows that are not finite and, by field, which rows those are, (N,) bool."""
    bad: dict[str, Tensor] = {}
    for name, value in outputs.tensors():
        if (field_ := name.partition(".")[0]) in WHY:
            rows = ~value.flatten(1).isfinite().all(dim=1)
            bad[field_] = bad[field_] | rows if field_ in bad else rows
    changed = {name: _zeroed(getattr(outputs, name), rows) for name, rows in bad.items() if rows.any()}
    return replace(outputs, **changed), bad


def _zeroed(value: Tensor | Mapping[str, Tensor], rows: Tensor) -> Tensor | dict[str, Tensor]:
    if isinstance(value, Mapping):
        return {name: _zeroed(each, rows) for name, each in value.items()}
    return value.masked_fill(rows.view(-1, *[1] * (value.ndim - 1)), 0)


@dataclass(frozen=True)
class Results:
    """The results of one evaluation: rows of the table, scores by set, accuracies (fractions), omitted detectors, and notes; `images`
    has, by set, a number for each scored image, by its content, and `calibrations`, by detector, its scores of ID val."""

    rows: list[Row]
    scored: dict[str, Scores]
    roles: dict[str, str]
    accuracy: float | None
    knn_accuracy: float | None
    omitted: list[Omitted]
    notes: dict[str, list[str]]
    predictor: ClassPredictor | None = None
    images: dict[str, Tensor] = field(default_factory=dict)
    calibrations: dict[str, Calibration] = field(default_factory=dict)
    joint: Joint | None = None

    def of_role(self, role: str) -> Scores | None:
        """Returns the scores of the first set with a role, or None without one."""
        return next((self.scored[name] for name, its in self.roles.items() if its == role), None)

    def flagged(self, thresholds: Mapping[str, float]) -> dict[str, dict[str, int]]:
        """Returns, by detector and OOD set, how many images score below the threshold."""
        ood = [name for name, role in self.roles.items() if role == "ood"]
        return {
            column: {name: int((self.scored[name].scores[column] < threshold).sum()) for name in ood}
            for column, threshold in thresholds.items()
        }
