"""The OSCR curve: how many ID images are accepted and classified right, against how many OOD images are accepted."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from clip_ood.metrics.influence import Influence
from clip_ood.metrics.ranking import Ranking, rank_scores


def oscr_curve(id_scores: Tensor, correct: Tensor, ood_scores: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the open-set classification rate curve: FPR(t) and CCR(t), each (G + 1,) float64, one point a distinct score.

    With M ID and N OOD images, at every threshold t from above the highest score, (0, 0), down to the lowest one, (1, accuracy):
    CCR(t) = #(ID with s ≥ t and the right class) / M, FPR(t) = #(OOD with s ≥ t) / N.

    Args:
        id_scores, ood_scores: (M,) and (N,), higher is more in-distribution, on any scale.
        correct: (M,) bool, which ID images are classified right.

    Raises:
        ValueError: as `rank_scores`; another number of `correct` than of ID scores.

    References:
        Dhamija, Günther & Boult, "Reducing Network Agnostophobia", NeurIPS 2018.
    """
    ranking = rank_scores(id_scores, ood_scores)
    return ranking.ood_above.double() / len(ood_scores), _right_above(ranking, correct).double() / len(id_scores)


def auoscr(id_scores: Tensor, correct: Tensor, ood_scores: Tensor) -> float:
    """Returns the area under the OSCR curve, P(right and s_id > s_ood) + ½ P(right and s_id = s_ood), between 0 and the accuracy.

    Points are joined by straight lines, as Vaze et al. (2022) join them, so that an image counts half against one that it ties
    with: the mean over the orders that equal scores may be sorted in. Where every class is right, it is the AUROC.

    Args, Raises: as `oscr_curve`.

    References:
        Vaze, Han, Vedaldi & Zisserman, "Open-Set Recognition: A Good Closed-Set Classifier is All You Need", ICLR 2022.

    Example:
        >>> import torch
        >>> auoscr(torch.tensor([3.0, 2.0]), torch.tensor([True, False]), torch.tensor([3.0, 1.0]))
        0.375
    """
    return auoscr_influence(rank_scores(id_scores, ood_scores), correct).value


def auoscr_influence(
    ranking: Ranking, correct: Tensor, id_images: Tensor | None = None, ood_images: Tensor | None = None
) -> Influence:
    """Returns V − AUOSCR of each image: V of an ID image is 0 if its class is wrong, otherwise the share of OOD images that it beats;
    V of an OOD image is the share of ID images that beat it with the right class; ties count half.

    AUOSCR is a mean over pairs of an ID and an OOD image, as AUROC is, so its interval is made in the same way (`interval`).

    Args:
        ranking: M ID and N OOD scores, from `rank_scores`.
        correct: (M,) bool, which ID images are classified right.
        id_images, ood_images: (M,) and (N,) numbers of the images; by default all are different ones.
    """
    right, fp = _right_above(ranking, correct).double(), ranking.ood_above.double()
    num_id, num_ood = len(ranking.id_order), len(ranking.ood_order)
    beaten = ranking.id_rows(1 - (fp[1:] + fp[:-1]) / (2 * num_ood))
    of_id = beaten * correct.to(beaten)
    of_ood = ranking.ood_rows((right[1:] + right[:-1]) / (2 * num_id))
    value = of_id.mean().item()
    costs = (of_id, of_ood) if value < 0.5 else (1 - of_id, 1 - of_ood)
    return Influence(value, of_id - value, [of_ood - value], id_images, [ood_images], costs, (1 / num_id, 1 / num_ood))


def _right_above(ranking: Ranking, correct: Tensor) -> Tensor:
    """How many ID images of the right class are accepted at each point of the curve, (G + 1,)."""
    if correct.shape != ranking.id_order.shape:
        raise ValueError(
            f"correct has shape {tuple(correct.shape)}, expected {tuple(ranking.id_order.shape)}, one an ID image"
        )
    in_order = correct.bool()[ranking.id_order]
    return pad(in_order.cumsum(0), (1, 0))[ranking.id_above]
