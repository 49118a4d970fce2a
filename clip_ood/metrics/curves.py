"""AUROC, FPR@95, AUPR and F1 of ID against OOD scores, of the scores themselves or of bootstrap resamples of them.

ID is the positive class and a higher score means more in-distribution. All values are fractions in [0, 1]. The same
cumulated counts give every metric: with all counts 1 the estimate, with counts of a resample its bootstrap replicate.
"""

import torch
from torch import Tensor

from clip_ood.metrics.ranking import Ranking, rank_scores
from clip_ood.metrics.resamples import Resamples

METRICS = ("auroc", "fpr95", "fpr95_ood_positive", "aupr_in", "aupr_out", "f1")

_CHUNK = 2**17  # elements of a temporary (resamples x points): 1 MiB of float64, so that work stays in the cache


def curve_metrics(ranking: Ranking, resamples: Resamples | None = None) -> dict[str, Tensor]:
    r"""Every metric in `METRICS`, for each of B resamples.

    With P and N the numbers of ID and OOD images, TP(t) and FP(t) the ID and OOD images with s ≥ t:

    - auroc = P(s_id > s_ood) + ½ P(s_id = s_ood)
    - fpr95 = FP(t) / N at the largest t with TP(t) / P ≥ 0.95
    - fpr95_ood_positive = share of ID with s ≤ t, at the smallest t with share of OOD with s ≤ t ≥ 0.95: the same with
      OOD as the positive class, as in OpenOOD (Yang et al. 2022)
    - aupr_in = Σ_t ΔTP(t) / P · TP(t) / (TP(t) + FP(t)), the average precision with ID positive
    - aupr_out = the average precision with OOD positive and score −s
    - f1 = max_t 2 TP(t) / (TP(t) + FP(t) + P)

    Args:
        ranking: M ID and N OOD scores, from `rank_scores`.
        resamples: B resamples of the same images; None is every image once (B = 1).

    Returns:
        (B,) float64 for each name in `METRICS`.

    Raises:
        ValueError: resamples drawn for other numbers of images.

    Example:
        >>> ranking = rank_scores(torch.tensor([3.0, 2.0]), torch.tensor([2.0, 1.0]))
        >>> curve_metrics(ranking)["auroc"]
        tensor([0.8750], dtype=torch.float64)
    """
    if resamples is None:
        return _metrics(ranking.id_above[None].double(), ranking.ood_above[None].double())
    resamples.check_sizes(len(ranking.id_order), len(ranking.ood_order))
    device = ranking.thresholds.device
    rows = max(1, _CHUNK // len(ranking.id_above))
    chunks = [
        _metrics(*ranking.positives(id_counts.to(device), ood_counts.to(device)))
        for id_counts, ood_counts in zip(resamples.id_counts.split(rows), resamples.ood_counts.split(rows), strict=True)
    ]
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in METRICS}


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


def _metrics(tp: Tensor, fp: Tensor) -> dict[str, Tensor]:
    """Every metric from true and false positives (B, G + 1); scores that no row of a resample has change nothing."""
    num_id, num_ood = tp[:, -1], fp[:, -1]
    called = tp + fp
    gained_tp, gained_fp = tp.diff(), fp.diff()  # (B, G), ties share a column
    # Nothing is gained where nothing is called (or left), so the clamped denominators only avoid 0 / 0.
    precision_in = tp[:, 1:] / called[:, 1:].clamp(min=1)
    left = called[:, -1:] - called[:, :-1]
    precision_out = (num_ood[:, None] - fp[:, :-1]) / left.clamp(min=1)
    return {
        "auroc": (gained_fp * (tp[:, 1:] + tp[:, :-1])).sum(1) / (2 * num_id * num_ood),
        "fpr95": _at(fp, torch.searchsorted(tp, _ceil95(num_id)[:, None])) / num_ood,
        "fpr95_ood_positive": 1 - _at(tp, _last_at_most(fp, num_ood - _ceil95(num_ood))) / num_id,
        "aupr_in": (gained_tp * precision_in).sum(1) / num_id,
        "aupr_out": (gained_fp * precision_out).sum(1) / num_ood,
        "f1": (2 * tp / (called + num_id[:, None])).amax(1),
    }


def _ceil95(total: Tensor) -> Tensor:
    """Smallest whole number that is at least 95 % of the total; in integers, since 0.95 has no exact float."""
    return ((19 * total.long() + 19) // 20).double()


def _last_at_most(rising: Tensor, bound: Tensor) -> Tensor:
    """(B, 1) last column of each non-decreasing row (B, G + 1) whose value is at most the bound (B,)."""
    return torch.searchsorted(rising, bound[:, None], right=True) - 1


def _at(values: Tensor, column: Tensor) -> Tensor:
    return values.gather(1, column).squeeze(1)
