"""How many new ID images a threshold accepts whose calibration scores come from the bank's own images: part of bench.statistics.

Features are normal in 16 dimensions, of 3 classes. A bank of n images is drawn, scored out of sample, and asked for a threshold; new images
of the same kind are scored by what is fitted on the whole bank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean, stdev

import torch
from torch import Tensor

from clip_ood.calibration import Calibration
from clip_ood.cross_fit import folds
from clip_ood.detectors.detector import Detector
from clip_ood.detectors.knn import KNN
from clip_ood.detectors.lof import LOF
from clip_ood.detectors.mahalanobis import Mahalanobis
from clip_ood.outputs import Outputs

SIZES = (10, 31, 100, 1000)
DETECTORS: dict[str, tuple[Callable[[], Detector], str]] = {
    "1-NN": (KNN, "leave_one_out"),
    "5th neighbour": (lambda: KNN(k=5, kth=True), "leave_one_out"),
    "mean of 5 neighbours": (lambda: KNN(k=5), "leave_one_out"),
    "LOF, k = 5": (lambda: LOF(k=5), "approximate"),
    "Mahalanobis distance, 5 folds": (lambda: Mahalanobis(normalize=False), "approximate"),
}


def draw(images: int, generator: torch.Generator, width: int = 16, classes: int = 3) -> Outputs:
    """Draws features (n, D) of classes, which are 6 apart."""
    labels = torch.randint(classes, (images,), generator=generator)
    means = 6 * torch.eye(classes, width)
    return Outputs(
        features=means[labels] + torch.randn(images, width, generator=generator),
        labels=labels,
        indices=torch.arange(images),
    )


def fitted(make: Callable[[], Detector], outputs: Outputs) -> Detector:
    """Returns a detector that is fitted on some images."""
    detector = make()
    detector.update(outputs)
    detector.fit()
    return detector


def out_of_sample(make: Callable[[], Detector], bank: Outputs, seed: int) -> Tensor:
    """Scores each image of a bank by what has not seen it (n,)."""
    if make().leaves_one_out:
        own = Outputs(features=bank.features, labels=bank.labels, indices=bank.indices, copy_of=bank.indices)
        return fitted(make, bank).score(own)
    dealt = torch.from_numpy(folds(bank.indices.numpy(), bank.labels.numpy(), 5, seed))
    scores = torch.empty(len(bank))
    for fold in range(5):
        left, out = dealt != fold, dealt == fold
        scores[out] = fitted(make, bank.map(lambda value, left=left: value[left])).score(
            bank.map(lambda value, out=out: value[out])
        )
    return scores


def accepted(name: str, images: int, accept: float, draws: int) -> tuple[float, float]:
    """Returns the mean share of new images that the threshold accepts, and its standard error."""
    make, by = DETECTORS[name]
    generator, shares = torch.Generator().manual_seed(images), []
    for number in range(draws):
        bank, new = draw(images, generator), draw(200, generator)
        calibration = Calibration(out_of_sample(make, bank, number), by=by)
        shares.append((fitted(make, bank).score(new) >= calibration.threshold(accept)).float().mean().item())
    return fmean(shares), stdev(shares) / math.sqrt(draws)


def lines(images: int, scale: float) -> list[tuple[str, bool]]:
    """Returns a line for each detector, and whether it is as stated: at least what is nominal, or about."""
    said = []
    for name, (_, by) in DETECTORS.items():
        accept = 0.9 if images < 19 else 0.95
        got, error = accepted(name, images, accept, max(5, int(scale * (2000 if images <= 100 else 200))))
        nominal = Calibration(torch.zeros(images)).expected(accept)
        proven = by == "leave_one_out"
        well = got >= nominal - 3 * error if proven else True
        claim = "at least" if proven else "about, not proven"
        text = (
            f"statistics, {name}, calibrated on its own {images:,} images: accepted of new ones, nominal {claim} {100 * nominal:.1f} %, "
            f"got {100 * got:.1f} % ± {100 * error:.1f}  {'well' if well else 'FALLS SHORT'}"
        )
        said.append((text, well))
    return said
