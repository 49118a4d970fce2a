"""The metrics of one detector on one OOD set, or on the mean of several, with confidence intervals."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clip_ood.metrics.curves import METRICS, curve_metrics
from clip_ood.metrics.delong import delong_interval
from clip_ood.metrics.ranking import rank_scores
from clip_ood.metrics.resamples import Resamples

MEAN = "mean"  # what tables call the mean over OOD sets


@dataclass(frozen=True)
class Estimate:
    """A metric's value, a fraction in [0, 1], and its confidence interval.

    Attributes:
        value: the metric of the scores as they are.
        low, high: ends of the interval; None where none was asked for.
        replicates: (B,) float64, the metric of each resample; two detectors' replicates from shared resamples are
            paired, so the spread of their difference is that of the detectors' difference. None without resamples.
    """

    value: float
    low: float | None = None
    high: float | None = None
    replicates: Tensor | None = field(default=None, repr=False, compare=False)


def ood_metrics(
    id_scores: Tensor, ood_scores: Tensor, resamples: Resamples | None = None, level: float = 0.95
) -> dict[str, Estimate]:
    """Every metric in `METRICS` (formulas at `curve_metrics`) of one detector on one OOD set.

    AUROC has DeLong's interval, which needs no resamples; the others the percentile bootstrap's, if there are any. A single ID or
    OOD image says nothing of others: then no metric has an interval.

    Args:
        id_scores: (M,) scores of the ID images, higher is more in-distribution, on any scale.
        ood_scores: (N,) scores of the OOD images.
        resamples: resamples of these images, from `draw_resamples`; None for no bootstrap.
        level: coverage of the intervals in (0, 1).

    Raises:
        ValueError: empty, NaN or infinite scores; resamples of other sizes; a level outside (0, 1).

    Example:
        >>> result = ood_metrics(torch.tensor([-900.0, -950.0, -980.0]), torch.tensor([-990.0, -960.0]))
        >>> round(result["auroc"].value, 4), result["fpr95"].value
        (0.8333, 0.5)
    """
    ranking = rank_scores(id_scores, ood_scores)
    values = curve_metrics(ranking)
    if min(len(id_scores), len(ood_scores)) < 2:
        return {name: Estimate(values[name].item()) for name in METRICS}
    auroc_interval = delong_interval(ranking, level)
    if resamples is None:
        estimates = {name: Estimate(values[name].item()) for name in METRICS}
        return estimates | {"auroc": Estimate(values["auroc"].item(), *auroc_interval)}
    replicates = curve_metrics(ranking, resamples)
    intervals = {name: _percentile_interval(replicates[name], level) for name in METRICS}
    intervals["auroc"] = auroc_interval
    return {name: Estimate(values[name].item(), *intervals[name], replicates[name]) for name in METRICS}


def mean_over_sets(of_set: Mapping[str, Mapping[str, Estimate]], level: float = 0.95) -> dict[str, Estimate]:
    """Mean of each metric over OOD sets; each set counts the same, whatever its size.

    The interval is the percentile bootstrap's of the mean, for AUROC too: replicate b of every set uses the same
    resample b of the ID images, so the sets' dependence through the ID images is kept.

    Args:
        of_set: `ood_metrics` of one detector by the name of the OOD set, all from one call of `draw_resamples`, or all
            without resamples (then there is no interval).
        level: coverage of the intervals in (0, 1).

    Raises:
        ValueError: no sets, or sets with different numbers of resamples.
    """
    if not of_set:
        raise ValueError("the mean over OOD sets needs at least one set, got none")
    return {name: _mean({key: estimates[name] for key, estimates in of_set.items()}, level) for name in METRICS}


def _mean(estimates: Mapping[str, Estimate], level: float) -> Estimate:
    value = sum(estimate.value for estimate in estimates.values()) / len(estimates)
    drawn = {key: 0 if e.replicates is None else len(e.replicates) for key, e in estimates.items()}
    if len(set(drawn.values())) > 1:
        raise ValueError(f"OOD sets have different numbers of resamples: {drawn}; draw them all in one call")
    if not any(drawn.values()):
        return Estimate(value)
    replicates = torch.stack([estimate.replicates for estimate in estimates.values()]).mean(0)  # (sets, B) -> (B,)
    return Estimate(value, *_percentile_interval(replicates, level), replicates)


def _percentile_interval(replicates: Tensor, level: float) -> tuple[float, float]:
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=replicates.dtype, device=replicates.device)
    low, high = replicates.quantile(ends).tolist()
    return low, high
