"""What each image contributes to an AUROC, and the standard error that follows from it, of one seed or the mean of several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Placed:
    """What each image of one seed contributes to an AUROC that is averaged over K OOD sets, or to a difference of two.

    Shapes: of_id (M,), the mean over the sets; of_ood K × (N_k,); id_images (M,) and ood_images K × (N_k,) int64, which
    images these are: one that stands in several seeds has the same number in all of them.
    """

    of_id: Tensor
    of_ood: list[Tensor]
    id_images: Tensor
    ood_images: list[Tensor]

    @property
    def auroc(self) -> float:
        """The AUROC, or the difference: the mean of of_id."""
        return self.of_id.mean().item()

    def __sub__(self, other: Placed) -> Placed:
        """The difference to another score of the same images, in the same order."""
        of_ood = [a - b for a, b in zip(self.of_ood, other.of_ood, strict=True)]
        return Placed(self.of_id - other.of_id, of_ood, self.id_images, self.ood_images)


def placements(id_scores: Tensor, ood_scores: Tensor) -> tuple[Tensor, Tensor]:
    """V_id (M,): the share of OOD images that each ID image beats; V_ood (N,): the share of ID images that beat each
    OOD image; ties counted half. Both have the AUROC as their mean.

    >>> placements(torch.tensor([3.0, 2.0]), torch.tensor([2.0, 1.0]))
    (tensor([1.0000, 0.7500], dtype=torch.float64), tensor([0.7500, 1.0000], dtype=torch.float64))
    """
    id_scores, ood_scores = id_scores.double(), ood_scores.double()
    return _share_below(id_scores, ood_scores), 1 - _share_below(ood_scores, id_scores)


def place(
    id_scores: Tensor,
    ood_scores: Sequence[Tensor],
    id_images: Tensor | None = None,
    ood_images: Sequence[Tensor] | None = None,
) -> Placed:
    """Contributions of ID scores (M,) and, for each of K OOD sets, OOD scores (N_k,).

    The images are numbered in their order where no numbers are given, as those of a single seed may be.
    """
    pairs = [placements(id_scores, each) for each in ood_scores]
    return Placed(
        torch.stack([of_id for of_id, _ in pairs]).mean(dim=0),
        [of_ood for _, of_ood in pairs],
        torch.arange(len(id_scores)) if id_images is None else id_images,
        [torch.arange(len(each)) for each in ood_scores] if ood_images is None else list(ood_images),
    )


def standard_error(of_seed: Sequence[Placed]) -> float:
    """Standard error of the mean over J seeds of an AUROC, or of a difference, for other draws of the images.

    With V_ij what image i contributes in seed j, among the n_j images there (0 where it is not among them):
    variance = Σ_i (1/J Σ_j (V_ij − mean_j) / √(n_j (n_j − 1)))² of the ID images, plus the same of each OOD set over K².
    Where all seeds have the same images it is DeLong's, of each image's mean contribution over the seeds; where their
    images differ, what they share counts as shared. The heads are taken as they are: what another training would change
    is not in it. Infinite where a set has a single image.

    References:
        DeLong, DeLong & Clarke-Pearson, "Comparing the Areas under Two or More Correlated Receiver Operating
        Characteristic Curves: A Nonparametric Approach", Biometrics 1988.
    """
    sets = len(of_seed[0].of_ood)
    variance = _variance([(each.of_id, each.id_images) for each in of_seed])
    for k in range(sets):
        variance += _variance([(each.of_ood[k], each.ood_images[k]) for each in of_seed]) / sets**2
    return math.sqrt(variance)


def _variance(of_seed: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Variance of the mean over seeds of the means of contributions (n_j,) of the images (n_j,)."""
    if any(len(values) < 2 for values, _ in of_seed):
        return math.inf
    total = torch.zeros(1 + max(int(images.max()) for _, images in of_seed), dtype=torch.float64)
    for values, images in of_seed:
        count = len(values)
        total.index_add_(0, images, (values - values.mean()) / math.sqrt(count * (count - 1)))
    return (total / len(of_seed)).square().sum().item()


def _share_below(values: Tensor, others: Tensor) -> Tensor:
    ordered = others.sort().values
    below = torch.searchsorted(ordered, values, right=False)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to).double() / (2 * len(others))
