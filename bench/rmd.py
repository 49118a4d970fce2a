"""RMD as two whitenings and one product, against a loop over classes: python -m bench.rmd"""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from bench import chosen, seconds
from clip_ood.detectors.mahalanobis import RMD
from clip_ood.outputs import Outputs


class Sizes(NamedTuple):
    images: int = 20_000
    width: int = 512
    classes: int = 1000
    looped: int = 20  # classes that the loop is timed on; the others take as long
    checked: int = 200  # images whose scores are compared


TINY = Sizes(images=200, width=16, classes=5, looped=2, checked=20)


def ours(x: Tensor, labels: Tensor) -> Tensor:
    detector = RMD()
    detector.update(Outputs(features=x, labels=labels))
    detector.fit()
    return detector.score(Outputs(features=x))


def loop(x: Tensor, labels: Tensor, scored: Tensor, classes: int, of: int) -> tuple[Tensor, float]:
    """Computes the definition in float64, with both covariances inverted once, over `classes` of the `of` classes.

    It also returns the seconds that all classes would take, in proportion.
    """
    start = perf_counter()
    x, scored = x.double(), scored.double()
    means = torch.stack([x[labels == c].mean(dim=0) for c in range(of)])
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
    return scores, fitted - start + (looped - fitted) * of / classes + perf_counter() - looped


def main(sizes: Sizes) -> None:
    images, width, classes, looped, checked = sizes
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.arange(classes), torch.randint(classes, (images - classes,), generator=generator)])
    x = torch.randn(images, width, generator=generator) + torch.randn(classes, width, generator=generator)[labels]
    scores, (expected, _) = ours(x, labels), loop(x, labels, x[:checked], classes, classes)
    difference = float(((scores[:checked] - expected) / expected).abs().max())
    times = {"ours": [], "loop": []}
    for _ in range(3):
        times["ours"].append(seconds(ours, x, labels))
        times["loop"].append(loop(x, labels, x, looped, classes)[1])
    fast, slow = (median(values) for values in times.values())
    print(
        f"rmd, times faster than a loop over classes, N={images} D={width} C={classes}  {slow / fast:.0f} "
        f"({slow:.1f} s by {looped} classes / {fast:.2f} s), relative difference {difference:.1e}  >= 100, <= 1e-6"
    )


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
