"""Risk against coverage: how often a classifier is wrong on the images that a score lets it answer."""

from __future__ import annotations

import torch
from torch import Tensor

OOD_COST = 0.5  # an accepted OOD image costs as much as a wrong class


def selective_risks(scores: Tensor, losses: Tensor) -> Tensor:
    """Returns the risk r_k, the mean loss of the k images with the highest scores, for k = 1 … N: (N,) float64.

    Images with equal scores each take the mean loss of all of them, so r_k is the mean over the orders that they may be sorted in.

    Args:
        scores: (N,) confidence, higher is accepted earlier, on any scale.
        losses: (N,) ≥ 0, what an image costs where it is accepted: bool or 0 and 1 for classes that are right and wrong.

    Raises:
        ValueError: fewer than two images; shapes that differ; scores or losses that are NaN or infinite.
    """
    if scores.ndim != 1 or losses.shape != scores.shape:
        raise ValueError(
            f"scores have shape {tuple(scores.shape)} and losses {tuple(losses.shape)}, expected (N,) for both"
        )
    if len(scores) < 2:
        raise ValueError(f"a risk-coverage curve needs two images or more, got {len(scores)}")
    scores, losses = scores.double(), losses.double()
    for name, values in (("scores", scores), ("losses", losses)):
        if bad := int((~values.isfinite()).sum()):
            raise ValueError(f"{bad} of {len(values)} {name} are NaN or infinite; every one must be finite")
    ordered, order = scores.sort(descending=True)
    _, tie, sizes = ordered.unique_consecutive(return_inverse=True, return_counts=True)
    of_tie = torch.zeros(len(sizes), dtype=torch.float64, device=scores.device).index_add_(0, tie, losses[order])
    return (of_tie / sizes)[tie].cumsum(0) / _counts(scores)


def aurc(scores: Tensor, losses: Tensor) -> float:
    """Returns the area under the risk-coverage curve: the mean risk over coverages k / N between 1 / N and 1, points joined by lines.

    AURC = Σ_k (r_k + r_k+1) / 2 / (N − 1), k = 1 … N − 1, with r of `selective_risks`; lower is better. It is torch-uncertainty's
    AURC wherever no two scores are equal; the mean of r_k over k, which others print, differs by at most 1 / (N − 1) of the largest loss.

    Args, Raises: as `selective_risks`.

    References:
        Geifman & El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017.

    Example:
        >>> aurc(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0]))
        0.3333333333333333
    """
    return _area(selective_risks(scores, losses))


def augrc(scores: Tensor, losses: Tensor) -> float:
    """Returns the area under the generalised risk-coverage curve, that of (k / N) r_k, as `aurc`; lower is better.

    (k / N) r_k is the share of all images that are both accepted and wrong, so an early mistake weighs no more than a late one; the
    area is about the probability that an image is wrong and scores higher than another one. It is torch-uncertainty's
    AUGRC wherever no two scores are equal.

    Args, Raises: as `selective_risks`.

    References:
        Traub et al., "Overcoming Common Flaws in the Evaluation of Selective Classification Systems", NeurIPS 2024.

    Example:
        >>> augrc(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0]))
        0.25
    """
    risks = selective_risks(scores, losses)
    return _area(risks * _counts(risks) / len(risks))


def scod_losses(correct: Tensor, num_ood: int, ood_cost: float = OOD_COST) -> Tensor:
    """Returns the losses (M + N,) float64 of M ID and then N OOD images in selective classification with OOD images (SCOD).

    An accepted OOD image costs c, an accepted ID image 1 − c if its class is wrong and otherwise nothing, so the risk of a threshold is
    ((1 − c) · wrong ID accepted + c · OOD accepted) / all accepted. c is c_fn of Narasimhan et al. and 1 − β of Xia and Bouganis; both
    plot this risk against coverage. (The cost of a rejected image, which Narasimhan et al. minimise besides, is what coverage shows.)

    Args:
        correct: (M,) bool, which ID images are classified right.
        num_ood: N ≥ 0.
        ood_cost: c between 0 (ID mistakes alone count) and 1 (OOD images alone count).

    Raises:
        ValueError: a cost outside [0, 1].

    References:
        Xia & Bouganis, "Augmenting Softmax Information for Selective Classification with Out-of-Distribution Data", ACCV 2022;
        Narasimhan et al., "Plugin Estimators for Selective Classification with Out-of-Distribution Detection", ICLR 2024.
    """
    cost = float(checked_cost(ood_cost))
    wrong = (~correct.bool()).double()
    return torch.cat([(1 - cost) * wrong, wrong.new_full((num_ood,), cost)])


def scod_aurc(id_scores: Tensor, correct: Tensor, ood_scores: Tensor, ood_cost: float = OOD_COST) -> float:
    """Returns the `aurc` of M ID and N OOD images with the losses of `scod_losses`: torch-uncertainty's SCODAURC.

    Coverage is of all M + N images, so the value depends on M : N, and sets of other sizes are not comparable.

    Args:
        id_scores, ood_scores: (M,) and (N,), higher is accepted earlier, on any scale.
        correct, ood_cost: as `scod_losses`.

    Raises:
        ValueError: as `selective_risks` and `scod_losses`.

    Example:
        >>> scod_aurc(torch.tensor([3.0, 1.0]), torch.tensor([True, True]), torch.tensor([2.0]))
        0.16666666666666666
    """
    return aurc(torch.cat([id_scores, ood_scores]), scod_losses(correct, len(ood_scores), ood_cost))


def checked_cost(ood_cost: float) -> float:
    """Returns the cost of an accepted OOD image. Raises: ValueError if it lies outside [0, 1]."""
    if not 0 <= ood_cost <= 1:
        raise ValueError(f"ood_cost is {ood_cost}, expected a number from 0 to 1, such as {OOD_COST}")
    return ood_cost


def _counts(values: Tensor) -> Tensor:
    return torch.arange(1, len(values) + 1, dtype=torch.float64, device=values.device)


def _area(heights: Tensor) -> float:
    """The mean height of a curve over N evenly spaced points, joined by lines."""
    return (torch.trapezoid(heights) / (len(heights) - 1)).item()
