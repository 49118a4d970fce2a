"""All metrics of one detector against scikit-learn's AUROC alone, and what intervals cost: python -m bench.metrics"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from bench import chosen
from clip_ood.metrics.curves import curve_metrics
from clip_ood.metrics.delong import delong_interval
from clip_ood.metrics.ood import ood_metrics
from clip_ood.metrics.ranking import rank_scores
from clip_ood.metrics.resamples import draw_resamples


class Sizes(NamedTuple):
    id: int = 50_000
    ood: int = 10_000
    resamples: int = 200
    repeats: int = 15


TINY = Sizes(id=500, ood=100, resamples=20, repeats=1)


def seconds(function: Callable[[], object]) -> float:
    start = perf_counter()
    function()
    return perf_counter() - start


def main(sizes: Sizes) -> None:
    generator = torch.Generator().manual_seed(0)
    id_scores, ood_scores = torch.randn(sizes.id, generator=generator) + 1, torch.randn(sizes.ood, generator=generator)
    truth = np.repeat([1, 0], [sizes.id, sizes.ood])
    scores = torch.cat([id_scores, ood_scores]).numpy()
    draws = draw_resamples(sizes.id, {"ood": sizes.ood}, sizes.resamples, seed=0)["ood"]
    work = {
        "ours": lambda: curve_metrics(rank_scores(id_scores, ood_scores)),
        "sklearn": lambda: roc_auc_score(truth, scores),
        "delong": lambda: delong_interval(rank_scores(id_scores, ood_scores), 0.95),
    }
    times = {name: [] for name in work}
    for _ in range(sizes.repeats):
        for name, function in work.items():
            times[name].append(seconds(function))
    ours, theirs, delong = (1000 * median(times[name]) for name in work)
    intervals = seconds(lambda: ood_metrics(id_scores, ood_scores, draws))
    print(
        f"metrics, all six of {sizes.id} + {sizes.ood} scores over scikit-learn's AUROC alone  {ours / theirs:.2f} "
        f"({ours:.1f} ms / {theirs:.1f} ms), with DeLong's interval {delong:.1f} ms, "
        f"with {sizes.resamples} resamples {intervals:.2f} s  <= 1"
    )


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
