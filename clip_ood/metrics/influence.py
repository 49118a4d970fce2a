"""How AUROC and average precision depend on each image: what their standard errors and intervals follow from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from clip_ood.metrics.ranking import Ranking


@dataclass(frozen=True)
class Influence:
    """The dependence of a metric, averaged over K OOD sets, on the images of one seed.

    Attributes:
        value: the metric, or the difference of two.
        of_id: (M,) float64, n times what the metric gains when image i counts a little more; the mean is 0.
        of_ood: K tensors (N_k,), the same for the images of each OOD set, before the mean over sets.
        id_images, ood_images: (M,) and K tensors (N_k,) int64, which images these are: an image that comes twice, as ID and as
            OOD, in two OOD sets or in two seeds, has the same number each time. None: all are different ones.
        costs: for ID and for OOD images, (n,) ≥ 0, what each image takes from a perfect value: few images that cost anything tell
            little of the spread. Empty for a difference.
        largest: the most that one ID image and one OOD image may take from the metric.
    """

    value: float
    of_id: Tensor
    of_ood: list[Tensor]
    id_images: Tensor | None
    ood_images: list[Tensor | None]
    costs: tuple[Tensor, ...] = ()
    largest: tuple[float, float] = (0.0, 0.0)

    @property
    def misplaced(self) -> tuple[float, float]:
        """The effective numbers of ID and of OOD images that cost something, (Σ c)² / Σ c² each."""
        of_id, of_ood = map(effective, self.costs)
        return of_id, of_ood

    def swapped(self) -> Influence:
        """The same with ID and OOD changed over, of a single OOD set."""
        return Influence(
            self.value,
            self.of_ood[0],
            [self.of_id],
            self.ood_images[0],
            [self.id_images],
            self.costs[::-1],
            self.largest[::-1],
        )

    def __sub__(self, other: Influence) -> Influence:
        """The difference to another score of the same images, in the same order."""
        of_ood = [a - b for a, b in zip(self.of_ood, other.of_ood, strict=True)]
        return Influence(self.value - other.value, self.of_id - other.of_id, of_ood, self.id_images, self.ood_images)


def auroc_influence(ranking: Ranking, id_images: Tensor | None = None, ood_images: Tensor | None = None) -> Influence:
    """Returns V − AUROC of each image, where V of an ID image is the share of OOD images that it beats and V of an OOD image the share
    of ID images that beat it, ties counted half (DeLong's placements).

    Args:
        ranking: M ID and N OOD scores, from `rank_scores`.
        id_images, ood_images: (M,) and (N,) numbers of the images; by default all are different ones.

    References:
        DeLong, DeLong & Clarke-Pearson, "Comparing the Areas under Two or More Correlated Receiver Operating
        Characteristic Curves: A Nonparametric Approach", Biometrics 1988.
    """
    tp, fp = ranking.id_above.double(), ranking.ood_above.double()
    num_id, num_ood = len(ranking.id_order), len(ranking.ood_order)
    of_id = ranking.id_rows(1 - (fp[1:] + fp[:-1]) / (2 * num_ood))
    of_ood = ranking.ood_rows((tp[1:] + tp[:-1]) / (2 * num_id))
    value = of_id.mean().item()
    costs = (of_id, of_ood) if value < 0.5 else (1 - of_id, 1 - of_ood)
    largest = 1 / num_id, 1 / num_ood
    return Influence(value, of_id - value, [of_ood - value], id_images, [ood_images], costs, largest)


def auroc_influence_of_sorted(id_scores: Tensor, ood_scores: Tensor) -> Influence:
    """Returns the `auroc_influence` for M ID scores that are sorted already, ascending, so that one sort serves many small OOD sets.

    `of_id` is in the order of the sorted scores, and all images are taken for different ones: O(M + N log M), float64 in and out.
    """
    num_id, num_ood = len(id_scores), len(ood_scores)
    below, through = (torch.searchsorted(id_scores, ood_scores, right=right) for right in (False, True))
    steps = torch.cat([below, through]).bincount(minlength=num_id + 1)[:num_id]
    of_id = steps.cumsum(0).double() / (
        2 * num_ood
    )  # ½ from the first ID score that an OOD score ties with, 1 from the first above
    of_ood = 1 - (below + through).double() / (2 * num_id)
    value = of_id.mean().item()
    costs = (of_id, of_ood) if value < 0.5 else (1 - of_id, 1 - of_ood)
    return Influence(value, of_id - value, [of_ood - value], None, [None], costs, (1 / num_id, 1 / num_ood))


def precision_influence(
    ranking: Ranking, id_images: Tensor | None = None, ood_images: Tensor | None = None
) -> Influence:
    """Returns the influence of each image on the average precision Σ_g ΔTP_g / M · TP_g / (TP_g + FP_g), ID positive.

    With g the threshold of an image, A_h = ΔTP_h FP_h / (TP_h + FP_h)² and B_h = ΔTP_h TP_h / (TP_h + FP_h)² it is, of an ID
    image, precision_g − AP + Σ_{h ≥ g} A_h − Σ_h A_h TP_h / M, and of an OOD image −N / M (Σ_{h ≥ g} B_h − Σ_h B_h FP_h / N):
    the derivative of the average precision at a fixed share of ID images among all.

    Args: as `auroc_influence`.
    """
    tp, fp = ranking.id_above[1:].double(), ranking.ood_above[1:].double()
    num_id, num_ood = len(ranking.id_order), len(ranking.ood_order)
    gained = ranking.id_above.diff().double()
    precision = tp / (tp + fp)
    value = ((gained * precision).sum() / num_id).item()
    for_id, for_ood = gained * fp / (tp + fp) ** 2, gained * tp / (tp + fp) ** 2
    lowered = num_ood / num_id * _from_here(for_ood)
    of_id = precision - value + _from_here(for_id) - (for_id * tp).sum() / num_id
    of_ood = (for_ood * fp).sum() / num_id - lowered
    steps = torch.arange(1, num_id + 1, dtype=torch.float64)
    below_all, above_all = num_ood / (num_id + num_ood) / num_id, (steps / (steps + 1) ** 2).sum().item() / num_id
    costs = ranking.id_rows(1 - precision), ranking.ood_rows(lowered)
    rows = ranking.id_rows(of_id), [ranking.ood_rows(of_ood)]
    return Influence(value, *rows, id_images, [ood_images], costs, (below_all, above_all))


def average(of_sets: Sequence[Influence]) -> Influence:
    """Returns the influence on the mean of a metric over K OOD sets, each one's against the same ID images."""
    count = len(of_sets)
    if count == 1:
        return of_sets[0]
    return Influence(
        value=fmean(each.value for each in of_sets),
        of_id=torch.stack([each.of_id for each in of_sets]).mean(dim=0),
        of_ood=[each.of_ood[0] for each in of_sets],
        id_images=of_sets[0].id_images,
        ood_images=[each.ood_images[0] for each in of_sets],
        costs=(
            torch.stack([each.costs[0] for each in of_sets]).mean(dim=0),
            torch.cat([each.costs[1] / len(each.costs[1]) for each in of_sets]),
        ),
        largest=(fmean(each.largest[0] for each in of_sets), max(each.largest[1] for each in of_sets) / count),
    )


def standard_error(of_seed: Sequence[Influence]) -> float:
    """Returns the standard error of the mean over J seeds of a metric, or of a difference, for other draws of the images.

    With c_isj the influence of image i in set s of seed j, among the n there, and K OOD sets,
    variance = Σ_i (1/J Σ_s,j w_s c_isj / √(n (n − 1)))², w = 1 for ID images and 1/K for OOD images: what an image contributes in
    several places, as ID and as a corrupted OOD image, in two OOD sets or in several seeds, varies together. Where every image is
    in one place it is DeLong's standard error. The heads are taken as they are: what another training would change is not in it.
    Infinite where a set has a single distinct image.
    """
    apart, places = 0.0, []
    for each in of_seed:
        of_sets = [(each.of_id, each.id_images, 1.0)]
        for values, images in zip(each.of_ood, each.ood_images, strict=True):
            of_sets.append((values, images, 1 / len(each.of_ood)))
        for values, images, weight in of_sets:
            count = len(values)
            if count < 2 or (images is not None and bool((images == images[0]).all())):
                return math.inf
            values = weight * values / math.sqrt(count * (count - 1))
            if images is None:
                apart += values.square().sum().item()
            else:
                places.append((images, values))
    total = torch.zeros(1 + max((int(images.max()) for images, _ in places), default=0), dtype=torch.float64)
    for images, values in places:
        total.index_add_(0, images, values)
    return math.sqrt(apart + total.square().sum().item()) / len(of_seed)


def effective(costs: Tensor) -> float:
    """(Σ c)² / Σ c² of values (n,) ≥ 0; 0 where all are 0.

    >>> effective(torch.tensor([0.0, 0.0, 2.0, 2.0]))
    2.0
    """
    squares = costs.square().sum().item()
    return costs.sum().item() ** 2 / squares if squares else 0.0


def _from_here(values: Tensor) -> Tensor:
    """Σ_{h ≥ g} values_h of each g."""
    return values.flip(0).cumsum(0).flip(0)
