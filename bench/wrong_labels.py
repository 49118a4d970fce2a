"""How many planted wrong labels are found, and how near the estimate of their number is: python -m bench.wrong_labels

Labels of made-up classes, apart or overlapping, and of the demo's ID images are swapped for others at random.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench import chosen
from bench.label_free import photographs
from clip_ood.features.rows import Rows
from clip_ood.folder.labels import Votes, doubtful_labels, votes
from clip_ood.folder.neighbours import neighbours

SHARES = (0.0, 0.05, 0.2)  # of the labels are swapped
APART = {
    "classes apart": 2.0,
    "classes that overlap": 0.6,
}  # standard deviation of their means, where that of images is 1


class Sizes(NamedTuple):
    draws: int = 20
    images: int = 2000
    demo: bool = True


TINY = Sizes(1, 100, False)


def made(images: int, apart: float, draw: int) -> tuple[Tensor, np.ndarray]:
    """Returns features (N, 32) and classes (N,) of ten made-up classes."""
    rng = np.random.default_rng(draw)
    labels = rng.integers(0, 10, images)
    features = apart * rng.normal(size=(10, 32))[labels] + rng.normal(size=(images, 32))
    return torch.from_numpy(features).float(), labels


def measured(features: Tensor, truth: np.ndarray, share: float, draw: int) -> tuple[float, ...]:
    """Returns how many labels were swapped, how many are listed, how many of the swapped ones are, and the estimate."""
    rng, classes, count = np.random.default_rng(1000 + draw), int(truth.max()) + 1, round(share * len(truth))
    swapped = rng.choice(len(truth), count, replace=False)
    labels = truth.copy()
    labels[swapped] = (truth[swapped] + rng.integers(1, classes, count)) % classes
    near = neighbours(Rows([features]), np.arange(len(labels)), 20)
    voted = Votes.joined([votes(each.cosines, torch.from_numpy(labels)[each.places], classes) for each in near])
    found = doubtful_labels(voted, labels, np.bincount(labels, minlength=classes))
    return count, len(found.places), np.isin(swapped, found.places).sum(), found.wrong


def main(sizes: Sizes) -> None:
    sets = {name: [made(sizes.images, apart, draw) for draw in range(sizes.draws)] for name, apart in APART.items()}
    if sizes.demo:
        features, labels = photographs()
        sets["the demo"] = [(features, labels.numpy())] * sizes.draws
    print(f"wrong labels: swapped, listed, swapped and listed, estimate; means of {sizes.draws} draws")
    for name, draws in sets.items():
        for share in SHARES:
            found = np.mean([measured(*each, share, draw) for draw, each in enumerate(draws)], axis=0)
            print(f"{name:<22}" + "".join(f"{value:8.1f}" for value in found), flush=True)


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
