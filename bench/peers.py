"""Detectors against pytorch-ood's, fit and scores together: python -m bench.peers"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter

import torch
from pytorch_ood import detector as peers
from torch import Tensor

from clip_ood.detectors.detector import Detector
from clip_ood.detectors.knn import KNN
from clip_ood.detectors.mahalanobis import RMD
from clip_ood.detectors.vim import ViM
from clip_ood.outputs import Outputs, Reference

BANK, SCORED, D, C, DIM, REPEATS = 20_000, 5_000, 768, 100, 512, 3


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    means, labels = torch.randn(C, D, generator=generator), torch.randint(C, (BANK,), generator=generator)
    bank = means[labels] + torch.randn(BANK, D, generator=generator)
    scored = means[labels[:SCORED]] + torch.randn(SCORED, D, generator=generator)
    weight, bias = means / D, -0.5 * means.square().sum(dim=1) / D
    reference = Reference(weight=weight, bias=bias)

    def ours(make: Callable[[], Detector]) -> Tensor:
        detector = make()
        detector.update(Outputs(bank, None, bank @ weight.T + bias, labels, torch.arange(BANK)))
        detector.fit()
        return detector.score(Outputs(scored, None, scored @ weight.T + bias))

    def theirs(detector: object) -> Tensor:
        detector.fit_features(bank, labels)
        return -detector.predict_features(scored)

    pairs = {
        "rmd": (RMD, lambda: peers.RMD(None)),
        "vim": (lambda: ViM(reference, dim=DIM), lambda: peers.ViM(None, DIM, weight, bias)),
        "knn": (lambda: KNN(k=50, kth=True), lambda: peers.KNN(None, k=50)),
    }
    for name, (make, peer) in pairs.items():
        times = {"ours": [], "theirs": []}
        for _ in range(REPEATS):  # in turns, since the machine's speed drifts
            for side, function in (("ours", partial(ours, make)), ("theirs", partial(theirs, peer()))):
                start = perf_counter()
                scores = function()
                times[side].append(perf_counter() - start)
                if side == "ours":
                    expected = scores
        agree = torch.corrcoef(torch.stack([ranks(expected), ranks(scores)]))[0, 1]
        fast, slow = median(times["ours"]), median(times["theirs"])
        print(
            f"{name}, times faster than pytorch-ood, {BANK} + {SCORED} x {D}, {C} classes  {slow / fast:.1f} "
            f"({slow:.2f} s / {fast:.2f} s), rank correlation {agree:.4f}"
        )


def ranks(scores: Tensor) -> Tensor:
    return scores.argsort().argsort().double()


if __name__ == "__main__":
    main()
