"""RMD as two whitenings and one product, against a loop over classes: python -m bench.rmd"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from clip_ood.detectors.mahalanobis import RMD
from clip_ood.outputs import Outputs

N, D, C = 20_000, 512, 1000
LOOPED = 20  # classes that the loop is timed on; the others take as long
CHECKED = 200  # images whose scores are compared


def ours(x: Tensor, labels: Tensor) -> Tensor:
    detector = RMD()
    detector.update(Outputs(features=x, labels=labels))
    detector.fit()
    return detector.score(Outputs(features=x))


def loop(x: Tensor, labels: Tensor, scored: Tensor, classes: int) -> tuple[Tensor, float]:
    """The definition in float64, both covariances inverted once; the seconds it takes, for C classes by proportion."""
    start = perf_counter()
    x, scored = x.double(), scored.double()
    means = torch.stack([x[labels == c].mean(dim=0) for c in range(C)])
    centred = x - means[labels]
    precision, x = (centred.T @ centred / len(x)).inverse(), x - x.mean(dim=0)
    overall = (x.T @ x / len(x)).inverse()
    fitted = perf_counter()
    nearest = torch.full((len(scored),), torch.inf, dtype=torch.float64)
    for mean in means[:classes]:
        difference = scored - mean
        nearest = torch.minimum(nearest, ((difference @ precision) * difference).sum(dim=1))
    looped = perf_counter()
    difference = scored - means[labels].mean(dim=0)
    scores = ((difference @ overall) * difference).sum(dim=1) - nearest
    return scores, fitted - start + (looped - fitted) * C / classes + perf_counter() - looped


def seconds(function: Callable[[Tensor, Tensor], Tensor], *arguments: Tensor) -> float:
    start = perf_counter()
    function(*arguments)
    return perf_counter() - start


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.arange(C), torch.randint(C, (N - C,), generator=generator)])
    x = torch.randn(N, D, generator=generator) + torch.randn(C, D, generator=generator)[labels]
    scores, (expected, _) = ours(x, labels), loop(x, labels, x[:CHECKED], C)
    difference = float(((scores[:CHECKED] - expected) / expected).abs().max())
    times = {"ours": [], "loop": []}
    for _ in range(3):
        times["ours"].append(seconds(ours, x, labels))
        times["loop"].append(loop(x, labels, x, LOOPED)[1])
    fast, slow = (median(values) for values in times.values())
    print(
        f"rmd, times faster than a loop over classes, N={N} D={D} C={C}  {slow / fast:.0f} "
        f"({slow:.1f} s by {LOOPED} classes / {fast:.2f} s), relative difference {difference:.1e}  >= 100, <= 1e-6"
    )


if __name__ == "__main__":
    main()
