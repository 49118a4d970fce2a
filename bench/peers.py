"""Detectors against pytorch-ood's, fit and scores together: python -m bench.peers"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
from pytorch_ood import detector as peers
from torch import Tensor

from bench import chosen
from clip_ood.detectors.detector import Detector
from clip_ood.detectors.knn import KNN
from clip_ood.detectors.mahalanobis import RMD
from clip_ood.detectors.vim import ViM
from clip_ood.outputs import Outputs, Reference


class Sizes(NamedTuple):
    bank: int = 20_000
    scored: int = 5_000
    width: int = 768
    classes: int = 100
    dim: int = 512  # of ViM
    k: int = 50
    repeats: int = 3


TINY = Sizes(bank=200, scored=50, width=24, classes=5, dim=12, k=5, repeats=1)


def main(sizes: Sizes) -> None:
    generator = torch.Generator().manual_seed(0)
    means, labels = (
        torch.randn(sizes.classes, sizes.width, generator=generator),
        torch.randint(sizes.classes, (sizes.bank,), generator=generator),
    )
    bank = means[labels] + torch.randn(sizes.bank, sizes.width, generator=generator)
    scored = means[labels[: sizes.scored]] + torch.randn(sizes.scored, sizes.width, generator=generator)
    weight, bias = means / sizes.width, -0.5 * means.square().sum(dim=1) / sizes.width
    reference = Reference(weight=weight, bias=bias)

    def ours(make: Callable[[], Detector]) -> Tensor:
        detector = make()
        detector.update(Outputs(bank, None, bank @ weight.T + bias, labels, torch.arange(sizes.bank)))
        detector.fit()
        return detector.score(Outputs(scored, None, scored @ weight.T + bias))

    def theirs(detector: object) -> Tensor:
        detector.fit_features(bank, labels)
        return -detector.predict_features(scored)

    pairs = {
        "rmd": (RMD, lambda: peers.RMD(None)),
        "vim": (lambda: ViM(reference, dim=sizes.dim), lambda: peers.ViM(None, sizes.dim, weight, bias)),
        "knn": (lambda: KNN(k=sizes.k, kth=True), lambda: peers.KNN(None, k=sizes.k)),
    }
    for name, (make, peer) in pairs.items():
        times = {"ours": [], "theirs": []}
        for _ in range(sizes.repeats):  # in turns, since the machine's speed drifts
            for side, function in (("ours", partial(ours, make)), ("theirs", partial(theirs, peer()))):
                start = perf_counter()
                scores = function()
                times[side].append(perf_counter() - start)
                if side == "ours":
                    expected = scores
        agree = torch.corrcoef(torch.stack([ranks(expected), ranks(scores)]))[0, 1]
        fast, slow = median(times["ours"]), median(times["theirs"])
        print(
            f"{name}, times faster than pytorch-ood, {sizes.bank} + {sizes.scored} x {sizes.width}, {sizes.classes} classes  {slow / fast:.1f} "
            f"({slow:.2f} s / {fast:.2f} s), rank correlation {agree:.4f}"
        )


def ranks(scores: Tensor) -> Tensor:
    return scores.argsort().argsort().double()


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
