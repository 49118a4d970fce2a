"""AUROC, FPR@95, AUPR and best F1 of ID against OOD scores, and the curves that they are of.

ID is the positive class and a higher score means more in-distribution. All values are fractions in [0, 1].
"""

import torch
from torch import Tensor

from clip_ood.metrics.ranking import Ranking, rank_scores
from clip_ood.threads import one_thread

METRICS = ("auroc", "fpr95", "fpr95_ood_positive", "aupr_in", "aupr_out", "f1", "best_f1")
OF_SCORES = tuple(name for name in METRICS if name != "f1")  # f1 takes a threshold from other images


@one_thread()
def curve_metrics(ranking: Ranking) -> dict[str, float]:
    r"""Returns every metric in `METRICS` but f1, which takes a threshold.

    With P and N the numbers of ID and OOD images, TP(t) and FP(t) the ID and OOD images with s ≥ t:

    - auroc = P(s_id > s_ood) + ½ P(s_id = s_ood)
    - fpr95 = FP(t) / N at the largest t with TP(t) / P ≥ 0.95
    - fpr95_ood_positive = share of ID with s ≤ t, at the smallest t with share of OOD with s ≤ t ≥ 0.95: the same with
      OOD as the positive class, as in OpenOOD (Yang et al. 2022)
    - aupr_in = Σ_t ΔTP(t) / P · TP(t) / (TP(t) + FP(t)), the average precision with ID positive
    - aupr_out = the average precision with OOD positive and score −s
    - best_f1 = max_t 2 TP(t) / (TP(t) + FP(t) + P), at the threshold that is best on these very images

    Args:
        ranking: P ID and N OOD scores, from `rank_scores`.

    Example:
        >>> ranking = rank_scores(torch.tensor([3.0, 2.0]), torch.tensor([2.0, 1.0]))
        >>> curve_metrics(ranking)["auroc"]
        0.875
    """
    tp, fp = ranking.id_above.double(), ranking.ood_above.double()
    num_id, num_ood = len(ranking.id_order), len(ranking.ood_order)
    called = tp + fp
    gained_tp, gained_fp = tp.diff(), fp.diff()  # (G,), ties share a column
    precision_in = tp[1:] / called[1:]
    precision_out = (num_ood - fp[:-1]) / (called[-1] - called[:-1])
    last = torch.searchsorted(ranking.ood_above, num_ood - least_95(num_ood), right=True) - 1
    values = {
        "auroc": (gained_fp * (tp[1:] + tp[:-1])).sum() / (2 * num_id * num_ood),
        "fpr95": fp[torch.searchsorted(ranking.id_above, least_95(num_id))] / num_ood,
        "fpr95_ood_positive": 1 - tp[last] / num_id,
        "aupr_in": (gained_tp * precision_in).sum() / num_id,
        "aupr_out": (gained_fp * precision_out).sum() / num_ood,
        "best_f1": (2 * tp / (called + num_id)).amax(),
    }
    return {name: value.item() for name, value in values.items()}


def least_95(total: int) -> int:
    """The smallest whole number that is at least 95 % of the total; in integers, since 0.95 has no exact float."""
    return (19 * total + 19) // 20


def roc_curve(id_scores: Tensor, ood_scores: Tensor) -> tuple[Tensor, Tensor]:
    """False and true positive rates, each (G + 1,) float64, from (0, 0) to (1, 1), one point a distinct score.

    Raises:
        ValueError: as `rank_scores`.
    """
    ranking = rank_scores(id_scores, ood_scores)
    return ranking.ood_above.double() / len(ood_scores), ranking.id_above.double() / len(id_scores)


def pr_curve(id_scores: Tensor, ood_scores: Tensor) -> tuple[Tensor, Tensor]:
    """Recall and precision of ID, each (G + 1,) float64, from recall 0 (precision 1 by convention) to recall 1.

    Raises:
        ValueError: as `rank_scores`.
    """
    ranking = rank_scores(id_scores, ood_scores)
    precision = ranking.id_above.double() / (ranking.id_above + ranking.ood_above)
    precision[0] = 1.0
    return ranking.id_above.double() / len(id_scores), precision
