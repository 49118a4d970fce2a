"""How far figures move with conventions in which published code differs from this project, on simulated scores and features:
python -m bench.conventions prints the rows of the table in docs/metrics.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench import chosen
from clip_ood.detectors.knn import KNN
from clip_ood.detectors.mahalanobis import Mahalanobis
from clip_ood.metrics.curves import curve_metrics, pr_curve
from clip_ood.metrics.ranking import rank_scores
from clip_ood.outputs import Outputs

SMALL, LARGE = (46, 154), (5_000, 10_000)  # ID and OOD images, as in the demo and in a benchmark
CLASSES, WIDTH, K = 10, 32, 10
Pair = tuple[Tensor, Tensor]  # scores of ID (M,) and of OOD images (N,), or their features (M, D) and (N, D)


class Sizes(NamedTuple):
    draws: int = 100  # of scores
    features: int = 10  # draws of features
    bank: int = 200  # training images a class


TINY = Sizes(draws=2, features=1, bank=40)


class Difference(NamedTuple):
    """One convention: ours, another, the metric, and by how much the other moves it in each draw (draws,), as a fraction."""

    ours: str
    other: str
    metric: str
    sizes: tuple[int, int]
    moved: Tensor

    def row(self) -> str:
        """A row of the table, in points: mean and largest absolute difference."""
        moved = 100 * self.moved
        told = f"{moved.mean():+.2f} ({moved.abs().max():.2f})"
        return f"| {self.ours} | {self.other} | {self.metric} | {self.sizes[0]:,} / {self.sizes[1]:,} | {told} |"


def main(sizes: Sizes) -> None:
    for difference in measure(sizes):
        print(difference.row(), flush=True)


def measure(sizes: Sizes) -> Iterator[Difference]:
    """Every convention, each with the same seed."""
    for images in (SMALL, LARGE):
        draws = [scores(images, seed) for seed in range(sizes.draws)]
        tied = [tuple((each * 4).round() / 4 for each in pair) for pair in draws]
        yield _difference(
            "AUPR as average precision", "trapezoids", "AUPR, ID positive", images, draws, "aupr_in", trapezoids
        )
        tells = "FPR95, distinct scores", "FPR95, scores in steps of 0.25"
        for metric, of in zip(tells, (draws, tied), strict=True):
            yield _difference(
                "score ≥ threshold, TPR ≥ 95 %",
                "score > threshold, ⌊0.95 M⌋ images",
                metric,
                images,
                of,
                "fpr95",
                strict,
            )
        yield _difference(
            "ID positive",
            "OOD positive",
            "FPR95",
            images,
            draws,
            "fpr95",
            lambda *pair: ours(pair, "fpr95_ood_positive"),
        )
        yield _difference(
            "ID positive", "OOD positive", "AUPR", images, draws, "aupr_in", lambda *pair: ours(pair, "aupr_out")
        )
        found = [neighbours(images, sizes.bank, seed) for seed in range(sizes.features)]
        yield Difference(
            f"mean of {K} cosines", f"{K}th cosine (`kth: true`)", "AUROC of `knn`", images, torch.tensor(found)
        )
        found = [covariances(images, sizes.bank, seed) for seed in range(sizes.features)]
        yield Difference("pooled covariance", "one a class", "AUROC of `mahalanobis`", images, torch.tensor(found))


def _difference(ours_is, other_is, metric, images, draws, name, other) -> Difference:
    return Difference(
        ours_is, other_is, metric, images, torch.tensor([other(*pair) - ours(pair, name) for pair in draws])
    )


def scores(images: tuple[int, int], seed: int) -> Pair:
    """Normal scores, ID N(0, 1) and OOD N(-2, 1.5²): AUROC 87 %."""
    generator = torch.Generator().manual_seed(seed)
    ood = 1.5 * torch.randn(images[1], generator=generator, dtype=torch.float64) - 2
    return torch.randn(images[0], generator=generator, dtype=torch.float64), ood


def ours(pair: Pair, name: str) -> float:
    return float(curve_metrics(rank_scores(*pair))[name])


def trapezoids(inside: Tensor, outside: Tensor) -> float:
    """The area below the straight lines that join the points of the precision-recall curve."""
    recall, precision = pr_curve(inside, outside)
    return float(torch.trapezoid(precision, recall))


def strict(inside: Tensor, outside: Tensor) -> float:
    """FPR95 of OOD scores above the ⌊0.95 M⌋th largest of M ID scores, as in OpenOOD 1.0."""
    threshold = inside.sort(descending=True).values[int(0.95 * len(inside)) - 1]
    return float((outside > threshold).double().mean())


def neighbours(images: tuple[int, int], bank: int, seed: int) -> float:
    """How much higher the AUROC of the k-th neighbour is than that of the mean over k."""
    train, labels, inside, outside = features(images, bank, seed)
    found = []
    for kth in (False, True):
        detector = KNN(k=K, kth=kth)
        detector.update(Outputs(features=train, labels=labels))
        detector.fit()
        found.append(ours(tuple(detector.score(Outputs(features=each)) for each in (inside, outside)), "auroc"))
    return found[1] - found[0]


def covariances(images: tuple[int, int], bank: int, seed: int) -> float:
    """How much higher the AUROC of −min_c (v − μ_c)ᵀ Σ_c⁻¹ (v − μ_c) is than with one Σ for all classes."""
    train, labels, inside, outside = features(images, bank, seed)
    detector = Mahalanobis()
    detector.update(Outputs(features=train, labels=labels))
    detector.fit()
    pooled = tuple(detector.score(Outputs(features=each)) for each in (inside, outside))
    apart = []
    for each in (inside, outside):
        distances = []
        for label in range(CLASSES):
            own = train[labels == label].double()
            centred = each.double() - own.mean(dim=0)
            distances.append(((centred @ torch.linalg.inv(own.T.cov(correction=0))) * centred).sum(dim=1))
        apart.append(-torch.stack(distances).amin(dim=0))
    return ours(tuple(apart), "auroc") - ours(pooled, "auroc")


def features(images: tuple[int, int], bank: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training features and labels, features of ID and of OOD images: ten normal classes on a common spread, twenty other places."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    spread, places = 1.5 ** random(WIDTH), normalize(random(CLASSES + 20, WIDTH), dim=1) * WIDTH**0.5 * 0.6

    def around(own: Tensor) -> Tensor:
        return places[own] + spread * random(len(own), WIDTH) + 3

    labels = torch.arange(CLASSES * bank) % CLASSES
    train, inside = around(labels), around(torch.arange(images[0]) % CLASSES)
    return train, labels, inside, around(CLASSES + torch.arange(images[1]) % 20)


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
