"""Scores ID and OOD images that are shuffled together as streams, in several seeded orders, by test-time methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

import torch
from torch import Tensor

from clip_ood.metrics.curves import curve_metrics
from clip_ood.metrics.ood import MEAN
from clip_ood.metrics.ranking import rank_scores
from clip_ood.outputs import Outputs
from clip_ood.stream.adaptive import AdaptiveDetector

METRICS = ("auroc", "fpr95")


@dataclass(frozen=True)
class Plan:
    """How streams are made: a seed an order, the images of a batch, and the share of OOD images in a stream (None: all images)."""

    seeds: tuple[int, ...]
    batch_size: int
    ood_share: float | None = None

    def numbers(self, inside: int, outside: int) -> tuple[int, int]:
        """Returns how many of the ID and of the OOD images are in a stream: as many as can be at that share.

        >>> Plan((0,), 1, 0.1).numbers(900, 500), Plan((0,), 1, 0.5).numbers(900, 500), Plan((0,), 1).numbers(900, 500)
        ((900, 100), (500, 500), (900, 500))
        """
        if self.ood_share is None:
            return inside, outside
        odds = self.ood_share / (1 - self.ood_share)
        return max(1, min(inside, round(outside / odds))), max(1, min(outside, round(inside * odds)))

    def order(self, seed: int, inside: int, outside: int) -> Tensor:
        """Returns the rows (n,) of a stream in its order: ID images are 0 to `inside` − 1, and OOD images follow."""
        generator = torch.Generator().manual_seed(seed)
        drawn_id, drawn_ood = (
            torch.randperm(total, generator=generator)[:number]
            for total, number in zip((inside, outside), self.numbers(inside, outside), strict=True)
        )
        both = torch.cat([drawn_id, inside + drawn_ood])
        return both[torch.randperm(len(both), generator=generator)]


@dataclass(frozen=True)
class StreamRow:
    """AUROC and FPR95 of a method on an OOD set, or their means over the OOD sets: a fraction for each order (`values`, by metric).

    n_id, n_ood: images in a stream; those of the mean row are the fewest ID images, and the sum of the OOD images.
    """

    method: str
    ood: str
    values: dict[str, list[float]]
    n_id: int
    n_ood: int


@dataclass(frozen=True)
class StreamResults:
    """What test-time methods score; `methods` has the parameters by label."""

    plan: Plan
    methods: dict[str, dict[str, object]]
    rows: list[StreamRow] = field(default_factory=list)


@dataclass(frozen=True)
class Spread:
    """The mean of a metric over orders, its standard deviation (None for a single order), and its lowest and highest value."""

    mean: float
    std: float | None
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Returns the spread of one value an order."""
        return Spread(fmean(values), stdev(values) if len(values) > 1 else None, min(values), max(values))


def score_stream(method: AdaptiveDetector, embeddings: Tensor, batch_size: int) -> Tensor:
    """Returns the scores (n,) of images (n, E) in this order, batch by batch."""
    return torch.cat([method.score(Outputs(embeddings=batch)).cpu() for batch in embeddings.split(batch_size)])


def evaluate(
    methods: Mapping[str, Callable[[], AdaptiveDetector]],
    inside: Tensor,
    outside: Mapping[str, Callable[[], Tensor]],
    plan: Plan,
    watch: Callable[[Sequence[int]], Sequence[int]] = lambda seeds: seeds,
) -> list[StreamRow]:
    """Returns a row for each method and OOD set, and for the method's mean over the sets, after its sets.

    Each method begins every stream with an empty memory. All methods see the same orders.

    Args:
        methods: makes the methods, by label.
        inside: embeddings of the ID test images (N, E).
        outside: reads the embeddings of an OOD set (M, E), by its name; one set is held at a time.
        plan: how streams are made.
        watch: wraps the loop over seeds, to show progress.
    """
    found: dict[tuple[str, str], StreamRow] = {}
    for name, read in outside.items():
        both = torch.cat([inside, embeddings := read()])
        sizes = len(inside), len(embeddings)
        values = {label: {metric: [] for metric in METRICS} for label in methods}
        for seed in watch(plan.seeds):
            order = plan.order(seed, *sizes)
            stream, is_id = both[order], order < len(inside)
            for label, make in methods.items():
                scores = score_stream(make(), stream, plan.batch_size)
                metrics = curve_metrics(rank_scores(scores[is_id], scores[~is_id]))
                for metric in METRICS:
                    values[label][metric].append(metrics[metric])
        found |= {(label, name): StreamRow(label, name, values[label], *plan.numbers(*sizes)) for label in methods}
    return [row for label in methods for row in _with_mean([found[label, name] for name in outside])]


def _with_mean(rows: list[StreamRow]) -> list[StreamRow]:
    over_sets = {
        metric: [fmean(each) for each in zip(*(row.values[metric] for row in rows), strict=True)] for metric in METRICS
    }
    n_id, n_ood = min(row.n_id for row in rows), sum(row.n_ood for row in rows)
    return [*rows, StreamRow(rows[0].method, MEAN, over_sets, n_id, n_ood)]
