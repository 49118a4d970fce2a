"""The metrics of one detector on one OOD set, or on the mean of several, with confidence intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean

from torch import Tensor

from clip_ood.metrics.curves import curve_metrics
from clip_ood.metrics.influence import Influence, auroc_influence, average, precision_influence
from clip_ood.metrics.intervals import LEVEL, interval
from clip_ood.metrics.ranking import rank_scores
from clip_ood.metrics.rates import TwoParts, f1_parts, fpr95_parts, joined
from clip_ood.threads import one_thread

MEAN = "mean"  # what tables call the mean over OOD sets


@dataclass(frozen=True)
class Estimate:
    """A metric's value, a fraction in [0, 1], and its confidence interval.

    Attributes:
        value: the metric of the scores as they are.
        low, high: ends of the interval; None where there is none.
        source: what the interval follows from, and with it that of a mean over sets; None where there is none.
    """

    value: float
    low: float | None = None
    high: float | None = None
    source: Influence | TwoParts | None = field(default=None, repr=False, compare=False)


@one_thread()
def ood_metrics(
    id_scores: Tensor,
    ood_scores: Tensor,
    threshold: float | None = None,
    id_images: Tensor | None = None,
    ood_images: Tensor | None = None,
    level: float = LEVEL,
) -> dict[str, Estimate]:
    """Returns every metric in `METRICS` (formulas at `curve_metrics`) of one detector on one OOD set, and f1 at a threshold.

    AUROC and AUPR have the interval of `clip_ood.metrics.interval`, FPR95 and F1 that of `clip_ood.metrics.rates.joined`. The best
    F1 has none: its threshold was chosen on the images that it speaks of. A single distinct ID or OOD image says nothing of others:
    then no metric has an interval.

    Args:
        id_scores: (M,) scores of the ID images, higher is more in-distribution, on any scale.
        ood_scores: (N,) scores of the OOD images.
        threshold: from which score on an image counts as ID, set on other images; without it there is no f1.
        id_images, ood_images: (M,) and (N,) int64 numbers of the images, where some are in both or come twice: corrupted ID
            images have the numbers of what they were made of. By default all are different ones.
        level: coverage of the intervals in (0, 1).

    Raises:
        ValueError: empty, NaN or infinite scores; a level outside (0, 1).

    Example:
        >>> import torch
        >>> result = ood_metrics(torch.tensor([-900.0, -950.0, -980.0]), torch.tensor([-990.0, -960.0]))
        >>> round(result["auroc"].value, 4), result["fpr95"].value
        (0.8333, 0.5)
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, expected a coverage between 0 and 1, such as 0.95")
    ranking = rank_scores(id_scores, ood_scores)
    values = curve_metrics(ranking)
    if threshold is not None:
        at_threshold = f1_parts(id_scores, ood_scores, threshold, ood_images, level)
        values["f1"] = at_threshold.value
    if any(len(scores) < 2 for scores in (id_scores, ood_scores)) or any(
        images is not None and bool((images == images[0]).all()) for images in (id_images, ood_images)
    ):
        return {name: Estimate(value) for name, value in values.items()}
    reversed_ranking = ranking.reversed()
    sources = {
        "auroc": auroc_influence(ranking, id_images, ood_images),
        "fpr95": fpr95_parts(ranking, id_images, ood_images, level),
        "fpr95_ood_positive": fpr95_parts(reversed_ranking, ood_images, id_images, level).swapped(ood_images),
        "aupr_in": precision_influence(ranking, id_images, ood_images),
        "aupr_out": precision_influence(reversed_ranking, ood_images, id_images).swapped(),
    } | ({} if threshold is None else {"f1": at_threshold})
    return {
        name: _estimate(value, [sources[name]], level) if name in sources else Estimate(value)
        for name, value in values.items()
    }


def mean_over_sets(of_set: Mapping[str, Mapping[str, Estimate]], level: float = LEVEL) -> dict[str, Estimate]:
    """Returns the mean of each metric over OOD sets; each set counts the same, whatever its size.

    Its interval speaks of other draws of the images: that the sets are held against the same ID images, and may share OOD images, is
    in it.

    Args:
        of_set: `ood_metrics` of one detector by the name of the OOD set, against the same ID images.
        level: coverage of the intervals in (0, 1).

    Raises:
        ValueError: no sets.
    """
    if not of_set:
        raise ValueError("the mean over OOD sets needs at least one set, got none")
    first, *others = of_set.values()
    names = [name for name in first if all(name in each for each in others)]
    return {name: _mean([estimates[name] for estimates in of_set.values()], level) for name in names}


def _mean(estimates: list[Estimate], level: float) -> Estimate:
    value, sources = fmean(each.value for each in estimates), [each.source for each in estimates]
    return Estimate(value) if None in sources else _estimate(value, sources, level)


def _estimate(value: float, sources: list[Influence] | list[TwoParts], level: float) -> Estimate:
    if isinstance(sources[0], TwoParts):
        ends, source = joined(sources), sources[0] if len(sources) == 1 else None
    else:
        source = average(sources)
        ends = interval([source], level)
    return Estimate(value, *(ends or (None, None)), source)
