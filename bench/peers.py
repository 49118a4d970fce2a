"""Detectors, fit and scores together, against pytorch-ood's and scikit-learn's: python -m bench.peers"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
from pytorch_ood import detector as peers
from sklearn.decomposition import PCA as SklearnPCA
from torch import Tensor

from bench import chosen
from clip_ood.detectors.detector import Detector
from clip_ood.detectors.gen import GEN
from clip_ood.detectors.kl_matching import KLMatching
from clip_ood.detectors.knn import KNN
from clip_ood.detectors.mahalanobis import RMD, Mahalanobis
from clip_ood.detectors.vim import PCA, ViM
from clip_ood.outputs import Outputs, Reference


class Sizes(NamedTuple):
    banks: tuple[int, ...] = (2_000, 20_000, 200_000)
    widths: tuple[int, ...] = (512, 768)
    scored: int = 5_000  # at most as many as the bank has
    classes: int = 100
    neighbours: tuple[int, ...] = (1, 10, 50)
    repeats: int = 3


TINY = Sizes(banks=(200,), widths=(24,), scored=50, classes=5, neighbours=(1, 5), repeats=1)
SMALL = 10_000  # images of a bank below which more time is allowed, as long as it is short
Scored = Callable[[], Tensor]


def pairs(sizes: Sizes, size: int, width: int) -> dict[str, tuple[Scored, Scored]]:
    """Returns what fits a detector and scores images, ours and the peer's, by name."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(sizes.classes, width, generator=generator)
    labels = torch.arange(size) % sizes.classes
    bank = means[labels] + torch.randn(size, width, generator=generator)
    count = min(size, sizes.scored)
    scored = means[labels[:count]] + torch.randn(count, width, generator=generator)
    weight, bias = means / width, -0.5 * means.square().sum(dim=1) / width
    known, asked = bank @ weight.T + bias, scored @ weight.T + bias
    dim, rows = width * 2 // 3, torch.arange(size)

    def ours(make: Callable[[Reference], Detector]) -> Scored:
        def scores() -> Tensor:
            detector = make(Reference(weight=weight, bias=bias))
            detector.update(Outputs(bank, None, known, labels, rows))
            detector.fit()
            return detector.score(Outputs(scored, None, asked))

        return scores

    def of_features(make: Callable[[], object]) -> Scored:
        return lambda: -make().fit_features(bank, labels).predict_features(scored)

    def restored() -> Tensor:
        fitted = SklearnPCA(dim).fit(bank.numpy())
        back = fitted.inverse_transform(fitted.transform(scored.numpy()))
        return -(scored - torch.from_numpy(back)).norm(dim=1)

    found = {
        "rmd": (ours(RMD), of_features(lambda: peers.RMD(None))),
        "mahalanobis": (ours(Mahalanobis), of_features(lambda: peers.Mahalanobis(None))),
        "vim": (ours(lambda known: ViM(known, dim=dim)), of_features(lambda: peers.ViM(None, dim, weight, bias))),
        "pca (of scikit-learn)": (ours(lambda known: PCA(known, dim=dim)), restored),
        "gen": (ours(GEN), lambda: -peers.GEN.score(asked, M=100)),
        "kl_matching": (
            ours(KLMatching),
            lambda: -peers.KLMatching(None).fit_logits(known, labels).predict_logits(asked),
        ),
    }
    for k in sizes.neighbours:
        found[f"{k}-NN (of scikit-learn)"] = (
            ours(lambda known, k=k: KNN(known, k=k, kth=True)),
            of_features(lambda k=k: peers.KNN(None, k=k)),
        )
    return found


def main(sizes: Sizes) -> None:
    for size, width in product(sizes.banks, sizes.widths):
        for name, both in pairs(sizes, size, width).items():
            times, scores = ([], []), [both[0](), both[1]()]
            for _ in range(sizes.repeats):  # in turns, since the machine's speed drifts
                for side in (0, 1):
                    start = perf_counter()
                    both[side]()
                    times[side].append(perf_counter() - start)
            agree = torch.corrcoef(torch.stack([ranks(each.float()) for each in scores]))[0, 1]
            fast, slow = map(median, times)
            print(
                f"{name}, bank {size} x {width}, {sizes.classes} classes, time over the peer's  {fast / slow:.2f} "
                f"({1000 * fast:.0f} ms / {1000 * slow:.0f} ms), rank correlation {agree:.4f}  <= {1.2 if size < SMALL else 1}",
                flush=True,
            )


def ranks(scores: Tensor) -> Tensor:
    return scores.argsort().argsort().double()


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
