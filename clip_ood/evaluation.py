"""From outputs of a bank, ID images and OOD sets to scores, and from scores to the rows of a table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from clip_ood.detectors.bank import Bank
from clip_ood.detectors.build import Omitted, build_detectors
from clip_ood.detectors.detector import Detector, score_together, take_in
from clip_ood.detectors.exchange import ALONE, Exchange
from clip_ood.detectors.names import read_specs
from clip_ood.detectors.statistic import Statistic, share
from clip_ood.metrics.curves import curve_metrics
from clip_ood.metrics.knn_accuracy import weighted_vote
from clip_ood.metrics.ood import Estimate, mean_over_sets, ood_metrics
from clip_ood.metrics.ranking import rank_scores
from clip_ood.metrics.resamples import draw_resamples
from clip_ood.outputs import Outputs, Reference
from clip_ood.predictions import predict

NEIGHBOURS = 20  # of the k-NN accuracy
MEAN = "mean"


@dataclass(frozen=True)
class Scores:
    """What the detectors say of one set: indices (n,), scores (n,) by detector, and classes (n,) where there are any.

    `predictions` are those of the head or the text embeddings, `votes` those of the 20 nearest ID training images.
    """

    indices: Tensor
    scores: dict[str, Tensor]
    predictions: Tensor | None = None
    votes: Tensor | None = None

    def renamed(self, columns: Mapping[str, str]) -> Scores:
        """The scores of the detectors that `columns` keeps, each under its new name."""
        return replace(self, scores={name: self.scores[label] for label, name in columns.items()})


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


@dataclass
class DetectorSuite:
    """Detectors that are fitted on a bank together and score together; built from the first outputs they see.

    What several of them learn is taken in once: `statistics`.
    """

    reference: Reference
    specs: Sequence[str | Mapping[str, Any]] | None = None
    detectors: dict[str, Detector] | None = None
    omitted: list[Omitted] = field(default_factory=list)
    statistics: list[Statistic] = field(default_factory=list)

    def update(self, outputs: Outputs) -> None:
        """Take in a batch of the bank (see `Detector.update`)."""
        if self.detectors is None:
            self._build(outputs)
        take_in(self.detectors.values(), outputs)

    def fit(self, exchange: Exchange = ALONE) -> None:
        """Fit all detectors, once, after the last update; of several processes together.

        One that cannot be fitted on these images is left out, with the reason. Raises ValueError where none is left.
        """
        for statistic in self.statistics:
            statistic.join(exchange)
        for name, detector in list(self.detectors.items()):
            try:
                detector.fit()
            except ValueError as error:
                self.omitted.append(
                    Omitted(name, str(error).removeprefix(f"{detector.name or type(detector).__name__}: "))
                )
                del self.detectors[name]
        self._check_any_left()

    def score(self, outputs: Outputs, bank_labels: Tensor | None = None) -> Scores:
        """Scores of a batch, on the CPU, with the votes of its neighbours where `bank_labels` (N,) are given.

        They are classes by image-set row of the bank's images, -1 for one without; there are no votes where none has
        a class, or no detector keeps the bank.
        """
        vote = self._vote(bank_labels)
        predicted = predict(outputs, self.reference.text_embeddings)
        values = [value.cpu() for value in score_together(list(self.detectors.values()), outputs, vote)]
        return Scores(
            indices=outputs.indices.cpu(),
            predictions=None if predicted is None else predicted[0].cpu(),
            scores=dict(zip(self.detectors, values, strict=False)),
            votes=values[-1] if vote else None,
        )

    def _vote(self, bank_labels: Tensor | None) -> list[Callable[[Outputs], Tensor]]:
        bank = next((statistic for statistic in self.statistics if isinstance(statistic, Bank)), None)
        if bank is None or bank_labels is None or not (bank_labels >= 0).any():
            return []
        classes, k = int(bank_labels.max()) + 1, min(NEIGHBOURS, len(bank))

        def vote(rows: Outputs) -> Tensor:
            cosines, neighbours = bank.nearest(rows, k)
            labels = bank_labels.to(neighbours.device)[neighbours].where(neighbours >= 0, -1)
            return weighted_vote(cosines, labels, classes)

        return [vote]

    def choose(self, val: Scores, ood_val: Scores) -> dict[str, str]:
        """Of the candidates for a column, keep the one with the highest AUROC of ID val against `ood_val` (ties: the first).

        Neither may be what is reported on. A note says what was chosen among which. Returns the detectors that are kept:
        what each was called -> what it is called now.
        """
        kept = {label: label for label in self.detectors}
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for spec in read_specs(self.specs):
            if spec.chosen_as is not None and spec.label in self.detectors:
                ranking = rank_scores(val.scores[spec.label], ood_val.scores[spec.label])
                found[spec.chosen_as][spec.label] = curve_metrics(ranking)["auroc"].item()
        for column, values in found.items():
            best = max(values, key=values.get)
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
        """What the table must say of a detector, by its name."""
        return {name: list(detector.notes) for name, detector in self.detectors.items() if detector.notes}

    def _build(self, outputs: Outputs) -> None:
        given = {name for value in (outputs, self.reference) for name, part in vars(value).items() if part is not None}
        if outputs.labels is not None and not self._has_classes(outputs.labels):
            given.discard("labels")
        self.detectors, self.omitted = build_detectors(self.specs, self.reference, given)
        self._check_any_left()
        self.statistics = share(self.detectors.values())

    def _check_any_left(self) -> None:
        if not self.detectors:
            reasons = "; ".join(f"{each.detector}: {each.reason}" for each in self.omitted)
            raise ValueError(f"None of the detectors can run on this model. {reasons}")

    def _has_classes(self, labels: Tensor) -> bool:
        return self.reference.class_names is not None or bool((labels >= 0).any())


def settings_of(roles: Mapping[str, str]) -> dict[str, list[str]]:
    """The sets that count as positives in each setting, from set name -> role: csid sets only in full_spectrum.

    >>> settings_of({"id_test": "id", "v2": "csid", "svhn": "ood"})
    {'standard': ['id_test'], 'full_spectrum': ['id_test', 'v2']}
    """
    standard = [name for name, role in roles.items() if role == "id"]
    shifted = [name for name, role in roles.items() if role == "csid"]
    return {"standard": standard} | ({"full_spectrum": standard + shifted} if shifted else {})


def table_rows(
    scored: Mapping[str, Scores],
    roles: Mapping[str, str],
    groups: Mapping[str, str],
    resamples: int,
    seed: int,
    watch=lambda steps: steps,
) -> list[Row]:
    """A row for each setting, detector and OOD set, and one for the mean over OOD sets.

    `resamples` bootstrap draws (0: none) are shared by all detectors; `watch` wraps the steps in a progress bar.
    """
    ood = [name for name, role in roles.items() if role == "ood"]
    if not ood:
        return []
    rows = []
    detectors = list(next(iter(scored.values())).scores)
    sizes = {name: len(scored[name].indices) for name in ood}
    for setting, positives in settings_of(roles).items():
        n_id = sum(len(scored[name].indices) for name in positives)
        draws = draw_resamples(n_id, sizes, resamples, seed) if resamples else dict.fromkeys(ood)
        of_set: dict[str, dict[str, dict[str, Estimate]]] = defaultdict(dict)
        for detector, name in watch([(detector, name) for detector in detectors for name in ood]):
            id_scores = torch.cat([scored[positive].scores[detector] for positive in positives])
            of_set[detector][name] = ood_metrics(id_scores, scored[name].scores[detector], draws[name])
        for detector in detectors:
            rows += [
                Row(detector, setting, name, groups[name], of_set[detector][name], n_id, sizes[name]) for name in ood
            ]
            mean = mean_over_sets(of_set[detector])
            rows.append(Row(detector, setting, MEAN, "", mean, n_id, sum(sizes.values())))
    return rows


def accuracy(predictions: Iterable[Tensor] | Tensor | None, labels: Tensor) -> float | None:
    """Share of rows with a true label (n,) that are predicted right; None where there is nothing to compare."""
    known = labels >= 0
    if predictions is None or not known.any():
        return None
    return (predictions[known] == labels[known]).double().mean().item()
