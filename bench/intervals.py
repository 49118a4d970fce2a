"""Measures how often equally good scores are claimed to differ, over seeds: python -m bench.intervals

Images are seen by two encoders that are drawn from one distribution, so that neither is better: a score that learns from the one
is as good as the same score from the other. This also holds against the same OOD images, since for each of them there is one with
the encoders exchanged. A claim is a 95 % interval of the difference that excludes 0; 5 % of the studies may make one.

Redrawn: each study draws a pool of 154 images in 9 classes, which each seed divides into 77 train, 31 val and 46 test images.
Published: each study draws 150 test images; each seed trains on another half of the same 360 images, which are drawn once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from bench import chosen
from clip_ood.metrics.influence import Influence, auroc_influence
from clip_ood.metrics.paired import auroc_difference, seed_difference
from clip_ood.metrics.ranking import rank_scores

CLASSES, WIDTH = 9, 64
POOL, VAL, TEST = 154, 31, 46
TRAIN = POOL - VAL - TEST
OOD = 200
NOISE, SHARED = 1.5, 0.3  # standard deviation within a class; the share of its variance that both encoders see alike


@dataclass(frozen=True)
class World:
    """Class centres (C, D) and the centre of the OOD images (D,), and the random numbers that images are drawn with."""

    centres: Tensor
    outside: Tensor
    generator: torch.Generator

    def seen(self, centre: Tensor, *shape: int) -> list[Tensor]:
        """Images around centres (…, D) as both encoders see them: 2 × (*shape, D)."""
        common, *own = (torch.randn(*shape, WIDTH, generator=self.generator) for _ in range(3))
        return [centre + NOISE * (math.sqrt(SHARED) * common + math.sqrt(1 - SHARED) * each) for each in own]

    def order(self, *shape: int) -> Tensor:
        """Returns random permutations along the last dimension."""
        return torch.rand(*shape, generator=self.generator).argsort(-1)


def world(seed: int) -> World:
    """Draws the centres of a seed."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, WIDTH, generator=generator)
    return World(centres, 0.3 * torch.randn(WIDTH, generator=generator), generator)


def nearest_mean(train: Tensor, kept: Tensor) -> Tensor:
    """Class means (S, C, D) of images (S, n, D), each image in class c of `kept` (S, n, C) or left out."""
    return torch.einsum("snc,snd->scd", kept, train) / kept.sum(1).clamp(min=1)[..., None]


def both_ways(images: list[Tensor]) -> list[Tensor]:
    """Returns the images, and each again with the encoders exchanged, along the dimension before the last."""
    return [torch.cat(images, -2), torch.cat(images[::-1], -2)]


def redrawn(studies: int, seeds: int, per_class: int | None = None, seed: int = 0) -> Tensor:
    """Returns AUROCs (2, studies, seeds) of minus the distance to the nearest class mean, where each seed redraws the split.

    With `per_class` the means are of so many of the training images a class.
    """
    drawn = world(seed)
    labels = torch.arange(POOL) % CLASSES
    pools = drawn.seen(drawn.centres[labels], studies, POOL)
    outside = [each.expand(studies, -1, -1) for each in both_ways(drawn.seen(drawn.outside, 1, OOD // 2))]
    found = torch.empty(2, studies, seeds, dtype=torch.float64)
    for number in range(seeds):
        order = drawn.order(studies, POOL)
        tested, trained = order[:, :TEST], order[:, TEST + VAL :]
        kept = one_hot(labels[trained], CLASSES).float()  # (S, n, C)
        if per_class is not None:
            kept *= kept.cumsum(1) <= per_class
        for view, (pool, ood) in enumerate(zip(pools, outside, strict=True)):
            means = nearest_mean(_rows(pool, trained), kept)
            scores = [-torch.cdist(images, means).amin(-1) for images in (_rows(pool, tested), ood)]
            found[view, :, number] = _auroc(*scores)
    return found


def published(studies: int, seeds: int, seed: int = 0) -> Iterator[list[list[Influence]]]:
    """Yields for each study what each image contributes by encoder and seed.

    Each seed trains on another half of the same images, and all are tested on the same ones.
    """
    drawn = world(seed)
    train = both_ways(drawn.seen(drawn.centres[:, None], CLASSES, 20))  # 2 × (C, 40, D)
    labels = torch.arange(150) % CLASSES
    numbers = torch.arange(150), torch.arange(150, 300)  # tested in every seed
    for _ in range(studies):
        inside, outside = drawn.seen(drawn.centres[labels], 150), drawn.seen(drawn.outside, 150)
        study: list[list[Influence]] = [[], []]
        for _ in range(seeds):
            for view in range(2):
                half = drawn.order(CLASSES, 40)[:, :20]
                means = _rows(train[view], half).mean(1)  # (C, D)
                scores = (-torch.cdist(images[view], means).amin(-1) for images in (inside, outside))
                study[view].append(auroc_influence(rank_scores(*scores), *numbers))
        yield study


def claims_redrawn(aurocs: Tensor, seeds: int, test_to_train: float) -> float:
    """Returns the share of studies whose interval over the first seeds, of AUROCs (2, studies, …), excludes 0."""
    first, second = aurocs[..., :seeds].tolist()
    pairs = zip(first, second, strict=True)
    return sum(seed_difference(a, b, test_to_train).claimed for a, b in pairs) / len(first)


def main(studies: int) -> None:
    for per_class in (None, 3, 1):
        aurocs = redrawn(studies, 30, per_class)
        for seeds in (3, 10, 30):
            plain, corrected = (claims_redrawn(aurocs, seeds, ratio) for ratio in (0, TEST / TRAIN))
            trained = "all" if per_class is None else f"{per_class} a class"
            print(
                f"intervals, {seeds} redrawn splits of {POOL} images, means of {trained}: equal scores claimed to differ in "
                f"{100 * corrected:.1f} % of {studies} studies  <= 5 (uncorrected {100 * plain:.1f} %)",
                flush=True,
            )
    for seeds in (3, 10):
        differences = [auroc_difference(*study) for study in published(studies, seeds)]
        over_images = sum(each.claimed for each in differences) / studies
        of_seeds = (
            [each.value for each in (b - a for a, b in zip(*study, strict=True))] for study in published(studies, seeds)
        )
        over_seeds = sum(seed_difference([0] * seeds, each, 0).claimed for each in of_seeds) / studies
        print(
            f"intervals, {seeds} trainings on published images: equal scores claimed to differ in {100 * over_images:.1f} % of "
            f"{studies} studies  <= 5 (over seeds alone {100 * over_seeds:.1f} %)",
            flush=True,
        )


def _rows(images: Tensor, chosen: Tensor) -> Tensor:
    """Returns the rows (S, n, D) of (S, N, D) at positions (S, n)."""
    return images.gather(1, chosen[..., None].expand(-1, -1, images.shape[-1]))


def _auroc(inside: Tensor, outside: Tensor) -> Tensor:
    """Returns AUROCs (S,) of (S, M) and (S, N) scores without ties."""
    below = torch.searchsorted(outside.sort(-1).values, inside.contiguous())
    return below.double().mean(-1) / outside.shape[-1]


if __name__ == "__main__":
    main(chosen(2000, 4))
