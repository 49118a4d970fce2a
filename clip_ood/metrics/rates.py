"""Metrics at one threshold, FPR95 and F1, as two parts that vary apart: the ID images and the OOD images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

import torch
from torch import Tensor

from clip_ood.metrics.curves import least_95
from clip_ood.metrics.intervals import LEVEL, share_interval, wilson
from clip_ood.metrics.ranking import Ranking

FLAT = 0.75  # of ID images: from here to the lowest of them the curve is prolonged


@dataclass(frozen=True)
class TwoParts:
    """A metric whose error has one part from the ID images and one from the OOD images.

    Attributes:
        value: the metric.
        below, above: how far the interval reaches down and up for each part alone, (ID, OOD).
        together: the correlation of the two parts, where OOD images are made of the ID images.
        ood_images: which OOD images these are, for means over sets that share some.
    """

    value: float
    below: tuple[float, float]
    above: tuple[float, float]
    together: float = 0.0
    ood_images: Tensor | None = None

    def swapped(self, ood_images: Tensor | None) -> TwoParts:
        """The same with ID and OOD changed over; `ood_images` are those that are OOD then."""
        return TwoParts(self.value, self.below[::-1], self.above[::-1], self.together, ood_images)


def joined(of_sets: Sequence[TwoParts]) -> tuple[float, float]:
    """Returns the interval of the mean over K OOD sets, by recovering variances from the intervals of the parts.

    The lower end is value − √(a² + Σ_kl ρ_kl b_k b_l / K² − 2 a Σ_k r_k b_k / K), with a the mean distance of the ID parts, which the sets
    share, b_k that of the OOD parts, ρ_kl the share of images that two sets have in common, n_kl / √(n_k n_l), and r_k `together`;
    the upper end likewise.

    References: Zou & Donner, "Construction of confidence limits about effect measures", Statistics in Medicine 2008.
    """
    value, shared = fmean(each.value for each in of_sets), _shared(of_sets)

    def distance(parts: Sequence[tuple[float, float]]) -> float:
        own = torch.tensor([ood for _, ood in parts], dtype=torch.float64) / len(parts)
        of_id = fmean(inside for inside, _ in parts)
        crossed = sum(each.together * part.item() for each, part in zip(of_sets, own, strict=True))
        return math.sqrt(max(0.0, of_id**2 + (own @ shared @ own).item() - 2 * of_id * crossed))

    low = value - distance([each.below for each in of_sets])
    return max(0.0, low), min(1.0, value + distance([each.above for each in of_sets]))


def fpr95_parts(
    ranking: Ranking, id_images: Tensor | None = None, ood_images: Tensor | None = None, level: float = LEVEL
) -> TwoParts:
    """Returns FPR95 with the parts of its interval.

    ID part: the true share of ID images above the threshold lies in Wilson's interval of 95 % of M; FPR at these two shares is read
    off the curve, interpolated between ID images, and below the lowest of them prolonged as a line in normal quantiles.
    OOD part: `share_interval` of the share of N OOD images above the threshold.
    """
    num_id, num_ood = len(ranking.id_order), len(ranking.ood_order)
    z = NormalDist().inv_cdf((1 + level) / 2)
    place = int(torch.searchsorted(ranking.id_above, least_95(num_id)))
    count = int(ranking.ood_above[place])
    value = count / num_ood
    fewer, more = (_fpr(ranking, share) for share in wilson(0.95, num_id, z))
    fewer, more = min(fewer, value), max(more, value)
    low, high = share_interval(count, num_ood, level)
    low = min(low - value, wilson(fewer, num_ood, z)[0] - fewer)
    high = max(high - value, wilson(more, num_ood, z)[1] - more)
    together = _together(ranking, place, id_images, ood_images)
    return TwoParts(value, (value - fewer, -low), (more - value, high), together, ood_images)


def f1_parts(
    id_scores: Tensor, ood_scores: Tensor, threshold: float, ood_images: Tensor | None = None, level: float = LEVEL
) -> TwoParts:
    """Returns F1 = 2 a M / (a M + b N + M) at a threshold that was not chosen on these images, with the parts of its interval: a and b are
    the shares of M ID and N OOD images with a score of at least the threshold, each with its `share_interval`."""
    num_id, num_ood = len(id_scores), len(ood_scores)

    def f1(hits: float, misses: float) -> float:
        return 2 * hits * num_id / (hits * num_id + misses * num_ood + num_id)

    counts = [int((scores >= threshold).sum()) for scores in (id_scores, ood_scores)]
    hits, misses = counts[0] / num_id, counts[1] / num_ood
    (fewest_hits, most_hits), (fewest, most) = map(share_interval, counts, (num_id, num_ood), (level, level))
    value = f1(hits, misses)
    below = value - f1(fewest_hits, misses), value - f1(hits, most)
    return TwoParts(value, below, (f1(most_hits, misses) - value, f1(hits, fewest) - value), 0.0, ood_images)


def _fpr(ranking: Ranking, share: float) -> float:
    """The share of OOD images above the threshold that this share of ID images lies above, at the plotting positions j / (M + 1)."""
    num_id, num_ood = len(ranking.id_order), len(ranking.ood_order)
    lowest = num_id / (num_id + 1)
    if share <= lowest:
        return _at(ranking, share * (num_id + 1)) / num_ood
    normal, least = NormalDist(), 0.5 / num_ood

    def quantile(fpr: float) -> float:
        return normal.inv_cdf(min(max(fpr, least), 1 - least))

    last, before = _at(ranking, num_id) / num_ood, _at(ranking, FLAT * (num_id + 1)) / num_ood
    rise, run = quantile(last) - quantile(before), normal.inv_cdf(lowest) - normal.inv_cdf(FLAT)
    further = rise / run * (normal.inv_cdf(share) - normal.inv_cdf(lowest)) if lowest > FLAT else 0.0
    return max(last, normal.cdf(quantile(last) + further))


def _at(ranking: Ranking, accepted: float) -> float:
    """How many OOD images lie above the threshold of the `accepted`-th ID image, interpolated between whole numbers."""
    whole = math.floor(accepted)
    counts = torch.tensor([whole, min(whole + 1, len(ranking.id_order))])
    first, second = ranking.ood_above[torch.searchsorted(ranking.id_above, counts)].tolist()
    return first + (accepted - whole) * (second - first)


def _together(ranking: Ranking, place: int, id_images: Tensor | None, ood_images: Tensor | None) -> float:
    """Over images that are in both, the correlation of lying above the threshold as ID and as OOD image, times their share of both sets."""
    if id_images is None or ood_images is None or not bool(torch.isin(ood_images, id_images).any()):
        return 0.0
    above_id, above_ood = (
        torch.zeros(len(order), dtype=torch.float64) for order in (ranking.id_order, ranking.ood_order)
    )
    above_id[ranking.id_order[: int(ranking.id_above[place])]] = 1
    above_ood[ranking.ood_order[: int(ranking.ood_above[place])]] = 1
    total = torch.zeros(2, 1 + int(max(id_images.max(), ood_images.max())), dtype=torch.float64)
    for row, values, images in ((0, above_id, id_images), (1, above_ood, ood_images)):
        total[row].index_add_(0, images, values - values.mean())
    norms = total.norm(dim=1)
    return (total[0] @ total[1] / norms.prod()).item() if norms.prod() else 0.0


def _shared(of_sets: Sequence[TwoParts]) -> Tensor:
    """(K, K): the images that two sets share over the geometric mean of their numbers."""
    shares = torch.eye(len(of_sets), dtype=torch.float64)
    for i, first in enumerate(of_sets):
        for j, second in enumerate(of_sets[:i]):
            if first.ood_images is not None and second.ood_images is not None:
                common = int(torch.isin(first.ood_images, second.ood_images).sum())
                shares[i, j] = shares[j, i] = common / math.sqrt(len(first.ood_images) * len(second.ood_images))
    return shares
