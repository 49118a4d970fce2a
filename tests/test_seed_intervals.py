"""Intervals over seeds: against their formulas and naive loops, and how often they claim a difference that is not there."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from bench import intervals
from clip_ood.metrics.influence import auroc_influence, average, standard_error
from clip_ood.metrics.paired import auroc_difference, seed_difference
from clip_ood.metrics.ranking import rank_scores
from clip_ood.metrics.seeds import seed_margin, student_975, student_tails

pytestmark = pytest.mark.slow

NOMINAL, STUDIES = 0.05, 600
TOLERANCE = 3 * math.sqrt(NOMINAL * (1 - NOMINAL) / STUDIES)  # three standard deviations of a share of so many studies


@pytest.mark.parametrize("freedom", [1, 2, 9, 20, 21, 29, 30, 100, 10_000])
def test_students_quantile(freedom):
    assert student_975(freedom) == pytest.approx(student.ppf(0.975, freedom), abs=1e-6)
    for value in (0.1, 1.0, 2.5, 10.0):
        assert student_tails(value, freedom) == pytest.approx(2 * student.sf(value, freedom), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("count", [2, 3, 10, 30])
@pytest.mark.parametrize("ratio", [0.0, 46 / 77, 2.0])
def test_the_margin_is_nadeau_and_bengios(count, ratio):
    values = np.random.default_rng(count).normal(0.8, 0.03, count)
    expected = student.ppf(0.975, count - 1) * values.std(ddof=1) * math.sqrt(1 / count + ratio)
    assert seed_margin(values.tolist(), ratio) == pytest.approx(expected, rel=1e-3)


def test_ten_seeds_of_the_demo_have_intervals_2_6_times_as_long():
    values = [0.01 * k for k in range(10)]
    assert seed_margin(values, 46 / 77) / seed_margin(values, 0) == pytest.approx(2.6, abs=0.05)


def test_seeds_are_paired():
    first, second = [0.80, 0.90, 0.70], [0.82, 0.93, 0.73]
    found, pairs = seed_difference(first, second, 0.5), np.subtract(second, first)
    margin = student.ppf(0.975, 2) * pairs.std(ddof=1) * math.sqrt(1 / 3 + 0.5)
    assert (found.value, found.std) == pytest.approx((pairs.mean(), pairs.std(ddof=1)))
    assert (found.low, found.high) == pytest.approx((found.value - margin, found.value + margin), abs=1e-4)
    with pytest.raises(ValueError, match="two seeds or more, got 1"):
        seed_difference([0.5], [0.6], 0.5)


# Over images


def place(id_scores, ood_scores, id_images=None, ood_images=None):
    """The influence on the AUROC averaged over OOD sets."""
    numbers = [None] * len(ood_scores) if ood_images is None else ood_images
    found = zip(ood_scores, numbers, strict=True)
    return average([auroc_influence(rank_scores(id_scores, each), id_images, images) for each, images in found])


def drawn(seeds, pools, sizes):
    """Seeds that draw images of each pool (ID first) without putting them back, with the images' own scores a seed."""
    generator = torch.Generator().manual_seed(0)
    of_seed = []
    for _ in range(seeds):
        images = [torch.randperm(pool, generator=generator)[:size] for pool, size in zip(pools, sizes, strict=True)]
        scores = [torch.randn(size, generator=generator) + (k == 0) for k, size in enumerate(sizes)]
        images = [each + 10_000 * k for k, each in enumerate(images)]  # no image is in two sets
        of_seed.append(place(scores[0], scores[1:], images[0], images[1:]))
    return of_seed


def naive(of_seed):
    """The standard error, an image at a time."""
    sets, seeds = len(of_seed[0].of_ood), len(of_seed)
    variance = 0.0
    for k in range(-1, sets):
        parts = [(each.of_id, each.id_images) if k < 0 else (each.of_ood[k], each.ood_images[k]) for each in of_seed]
        for image in {int(number) for _, numbers in parts for number in numbers}:
            total = 0.0
            for values, numbers in parts:
                count, mean = len(values), values.mean().item()
                for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
                    if number == image:
                        total += (value - mean) / math.sqrt(count * (count - 1)) / seeds
            variance += total**2 / (1 if k < 0 else sets**2)
    return math.sqrt(variance)


@pytest.mark.parametrize("pools", [(20, 15, 12), (30, 15, 40), (2000, 2000, 2000)])
def test_images_that_seeds_share_count_as_shared(pools):
    of_seed = drawn(4, pools, (20, 15, 12))
    assert standard_error(of_seed) == pytest.approx(naive(of_seed), rel=1e-9)


def test_the_same_images_are_delongs_of_their_means_over_seeds():
    images = torch.arange(40), [torch.arange(40, 65)]
    of_seed = [place(torch.randn(40) + 1, [torch.randn(25)], *images) for _ in range(3)]
    of_id, of_ood = (
        torch.stack(parts).mean(0) for parts in zip(*((e.of_id, e.of_ood[0]) for e in of_seed), strict=True)
    )
    expected = math.sqrt(of_id.var() / 40 + of_ood.var() / 25)
    assert standard_error(of_seed) == pytest.approx(expected)
    assert standard_error([of_seed[0]] * 5) == pytest.approx(
        standard_error(of_seed[:1])
    )  # the same seed again adds nothing


def test_other_images_in_each_seed_are_independent():
    of_seed = drawn(3, (60, 60), (20, 15))
    apart = [
        place(torch.randn(20), [torch.randn(15)], torch.arange(20) + 20 * k, [torch.arange(15) + 15 * k + 1000])
        for k in range(3)
    ]
    alone = sum(standard_error([each]) ** 2 for each in apart)
    assert standard_error(apart) == pytest.approx(math.sqrt(alone) / 3)
    assert standard_error(of_seed) < math.sqrt(sum(standard_error([each]) ** 2 for each in of_seed) / 3)


def test_a_difference_over_seeds_has_their_standard_deviation_beside_it():
    first, second = drawn(3, (20, 15), (20, 15)), drawn(3, (20, 15), (20, 15))
    found = auroc_difference(first, second)
    pairs = [b.value - a.value for a, b in zip(first, second, strict=True)]
    assert (found.value, found.std) == pytest.approx((np.mean(pairs), np.std(pairs, ddof=1)))
    assert auroc_difference(first[:1], second[:1]).std is None


# Equal scores


@pytest.fixture(scope="module")
def aurocs():
    return {per_class: intervals.redrawn(STUDIES, 30, per_class) for per_class in (None, 3)}


@pytest.mark.parametrize("per_class", [None, 3])
@pytest.mark.parametrize("seeds, uncorrected", [(3, 0.05), (10, 0.15), (30, 0.30)])
def test_equal_scores_over_redrawn_splits_are_rarely_claimed_to_differ(aurocs, per_class, seeds, uncorrected):
    ratio = intervals.TEST / intervals.TRAIN  # of the split, also where the score learns from 3 images a class
    assert intervals.claims_redrawn(aurocs[per_class], seeds, ratio) <= NOMINAL + TOLERANCE
    assert intervals.claims_redrawn(aurocs[per_class], seeds, 0) > uncorrected


def test_equal_scores_on_published_images_are_rarely_claimed_to_differ():
    over_images, over_seeds = 0, 0
    for first, second in intervals.published(STUDIES, 10):
        over_images += auroc_difference(first, second).claimed
        over_seeds += seed_difference([each.value for each in first], [each.value for each in second], 0).claimed
    assert over_images / STUDIES <= NOMINAL + TOLERANCE and over_seeds / STUDIES > 0.5
