"""All metrics of one detector against scikit-learn's AUROC alone, and what intervals cost: python -m bench.metrics"""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from bench import chosen, seconds
from clip_ood.metrics.curves import curve_metrics
from clip_ood.metrics.ood import mean_over_sets, ood_metrics
from clip_ood.metrics.ranking import rank_scores


class Sizes(NamedTuple):
    id: int = 50_000
    ood: int = 10_000
    detectors: int = 18
    sets: int = 4
    repeats: int = 15


TINY = Sizes(id=500, ood=100, detectors=2, repeats=1)


def main(sizes: Sizes) -> None:
    generator = torch.Generator().manual_seed(0)
    id_scores, ood_scores = torch.randn(sizes.id, generator=generator) + 1, torch.randn(sizes.ood, generator=generator)
    truth = np.repeat([1, 0], [sizes.id, sizes.ood])
    scores = torch.cat([id_scores, ood_scores]).numpy()
    work = {
        "ours": lambda: curve_metrics(rank_scores(id_scores, ood_scores)),
        "sklearn": lambda: roc_auc_score(truth, scores),
        "intervals": lambda: ood_metrics(id_scores, ood_scores, 0.0),
    }
    times = {name: [] for name in work}
    for _ in range(sizes.repeats):
        for name, function in work.items():
            times[name].append(seconds(function))
    ours, theirs, intervals = (1000 * median(times[name]) for name in work)
    print(
        f"metrics, all six of {sizes.id} + {sizes.ood} scores over scikit-learn's AUROC alone  {ours / theirs:.2f} "
        f"({ours:.1f} ms / {theirs:.1f} ms), with all intervals {intervals:.1f} ms  <= 1"
    )
    table = seconds(
        lambda: [
            mean_over_sets({str(k): ood_metrics(id_scores, ood_scores, 0.0) for k in range(sizes.sets)})
            for _ in range(sizes.detectors)
        ]
    )
    values = ours / 1000 * sizes.detectors * sizes.sets
    print(
        f"metrics, table of {sizes.detectors} detectors on {sizes.sets} sets with all intervals over its values alone  "
        f"{table / values:.1f} ({table:.1f} s / {values:.1f} s)  <= 8"
    )


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
