"""Standard error and confidence interval of one AUROC without resampling."""

import math
from statistics import NormalDist

from torch import Tensor

from clip_ood.metrics.curves import curve_metrics
from clip_ood.metrics.ranking import Ranking


def delong_standard_error(ranking: Ranking) -> float:
    """Standard error of the AUROC: sqrt(var(V_id) / M + var(V_ood) / N).

    V_id of an ID image is the share of OOD images it beats, V_ood of an OOD image the share of ID images that beat it,
    ties counted half; both have the AUROC as their mean, and var is the unbiased sample variance. One sort gives all
    of them, in O((M + N) log(M + N)) as with midranks.

    Args:
        ranking: M ID and N OOD scores, from `rank_scores`.

    Returns:
        The standard error; infinite if M or N is 1, since one image says nothing about spread.

    References:
        DeLong, DeLong & Clarke-Pearson, "Comparing the Areas under Two or More Correlated Receiver Operating
        Characteristic Curves: A Nonparametric Approach", Biometrics 1988.
        Sun & Xu, "Fast Implementation of DeLong's Algorithm for Comparing the Areas Under Correlated Receiver
        Operating Characteristic Curves", IEEE Signal Processing Letters 2014.
    """
    tp, fp = ranking.id_above.double(), ranking.ood_above.double()
    num_id, num_ood = len(ranking.id_order), len(ranking.ood_order)
    v_id = 1 - (fp[1:] + fp[:-1]) / (2 * num_ood)  # (G,), the same for all images of one threshold
    v_ood = (tp[1:] + tp[:-1]) / (2 * num_id)
    return math.sqrt(_variance_of_mean(v_id, tp.diff()) + _variance_of_mean(v_ood, fp.diff()))


def delong_interval(ranking: Ranking, level: float = 0.95) -> tuple[float, float]:
    """Normal interval AUROC ± z · standard error, clipped to [0, 1].

    Perfect separation has standard error 0, so its interval is a point; it is not proof of a perfect detector.

    Args:
        ranking: M ID and N OOD scores, from `rank_scores`.
        level: coverage in (0, 1).

    Raises:
        ValueError: a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, expected a coverage between 0 and 1, such as 0.95")
    auroc = curve_metrics(ranking)["auroc"].item()
    margin = NormalDist().inv_cdf((1 + level) / 2) * delong_standard_error(ranking)
    return max(0.0, auroc - margin), min(1.0, auroc + margin)


def _variance_of_mean(values: Tensor, counts: Tensor) -> float:
    """Unbiased sample variance of values (G,) present `counts` (G,) times, over the number of them."""
    total = counts.sum().item()
    if total < 2:
        return math.inf
    mean = (counts * values).sum() / total
    return ((counts * (values - mean) ** 2).sum() / (total - 1) / total).item()
