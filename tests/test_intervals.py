"""Intervals of metrics: their influence values against derivatives and all pairs, their ends in degenerate cases, and what they cover."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch
from test_metrics import CASES, case, scores

from bench import statistics
from clip_ood.metrics import (
    METRICS,
    Estimate,
    auroc_influence,
    interval,
    mean_over_sets,
    ood_metrics,
    precision_influence,
    rank_scores,
    standard_error,
)
from clip_ood.metrics.influence import average
from clip_ood.metrics.intervals import wilson
from clip_ood.metrics.rates import _fpr

Z = 1.959964


def pairs(id_scores, ood_scores):
    """Who beats whom, (M, N)."""
    return (id_scores[:, None] > ood_scores) + 0.5 * (id_scores[:, None] == ood_scores).double()


def auroc(id_scores, ood_scores, of_id, of_ood):
    return (of_id[:, None] * of_ood * pairs(id_scores, ood_scores)).sum()


def precision(id_scores, ood_scores, of_id, of_ood):
    """The average precision with images of these weights, which sum to 1, at the share of ID images that there is."""
    num_id, num_ood = len(id_scores), len(ood_scores)
    hits = num_id * ((id_scores >= id_scores[:, None]) * of_id).sum(1)
    misses = num_ood * ((ood_scores >= id_scores[:, None]) * of_ood).sum(1)
    return (of_id * hits / (hits + misses)).sum()


@pytest.mark.parametrize("name", ["plain", "heavy ties", "few OOD", "few ID", "all wrong", "perfect"])
@pytest.mark.parametrize("metric, influence", [(auroc, auroc_influence), (precision, precision_influence)])
def test_influence_is_the_derivative_by_an_images_weight(name, metric, influence):
    id_scores, ood_scores = (each.double() for each in CASES[name])
    found = influence(rank_scores(id_scores, ood_scores))
    weights = [torch.full((len(each),), 1 / len(each), dtype=torch.float64) for each in (id_scores, ood_scores)]
    assert metric(id_scores, ood_scores, *weights).item() == pytest.approx(found.value)
    for side, values in enumerate((found.of_id, found.of_ood[0])):
        assert values.mean().abs() < 1e-12
        for image in range(0, len(values), 7):
            moved = list(weights)
            shift = -weights[side].clone()
            shift[image] += 1
            ends = []
            for step in (1e-5, -1e-5):
                moved[side] = weights[side] + step * shift
                ends.append(metric(id_scores, ood_scores, *moved).item())
            assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(values[image].item(), abs=1e-6)


@pytest.mark.parametrize("name", ["plain", "heavy ties", "few OOD", "near -1000, as Mahalanobis"])
def test_the_standard_error_is_delongs(name):
    id_scores, ood_scores = CASES[name]
    wins = pairs(id_scores, ood_scores)
    v_id, v_ood = wins.mean(1), wins.mean(0)
    expected = math.sqrt(v_id.var() / len(v_id) + v_ood.var() / len(v_ood))
    found = auroc_influence(rank_scores(id_scores, ood_scores))
    assert standard_error([found]) == pytest.approx(expected)
    value, spread = wins.mean().item(), wins.mean().item() * (1 - wins.mean().item())
    costs = [1 - v_id, 1 - v_ood]
    k_id, k_ood = (each.sum().item() ** 2 / each.square().sum().item() for each in costs)
    missed = max(
        1 / len(v_id) / (k_id + 12) * max(1, (k_ood + 1) / (k_id + 1)) ** 0.25,
        1 / len(v_ood) / (k_ood + 12) * max(1, (k_id + 1) / (k_ood + 1)) ** 0.25,
    )
    margin = Z * math.sqrt((expected**2 / spread + missed) / spread)
    ends = [1 / (1 + math.exp(-math.log(value / (1 - value)) - sign * margin)) for sign in (-1, 1)]
    assert interval([found]) == pytest.approx(ends, abs=1e-6)


@case
def test_an_interval_holds_its_value_and_has_a_width(id_scores, ood_scores):
    found = ood_metrics(id_scores, ood_scores, threshold=id_scores.median().item())
    assert list(found) == [*(name for name in METRICS if name != "f1"), "f1"]
    for name, each in found.items():
        if name == "best_f1" or min(len(id_scores), len(ood_scores)) < 2:
            assert (each.low, each.high) == (None, None)
        else:
            assert (
                0 <= each.low <= each.value + 1e-12
                and each.value - 1e-12 <= each.high <= 1
                and each.high - each.low > 1e-3
            )


def test_perfect_separation_is_no_proof():
    for count in (2, 20, 200, 2000):
        found = ood_metrics(torch.arange(count) + 5000.0, torch.arange(count) * 1.0)
        assert found["auroc"].value == found["auroc"].high == 1
        assert found["auroc"].low == pytest.approx(wilson(1, count, Z)[0])  # no image is misplaced: n = 1 / δ
        assert found["fpr95"].value == found["fpr95"].low == 0 and found["fpr95"].high >= 3.5 / (count + 4)
    assert ood_metrics(torch.arange(5.0), torch.arange(5) + 9.0)["auroc"].low == 0


def test_one_image_over_and_over_has_no_interval():
    id_scores, ood_scores = torch.full((30,), 2.0), torch.randn(40, generator=torch.Generator().manual_seed(0))
    numbers = torch.zeros(30, dtype=torch.long), torch.arange(40) + 1
    found = ood_metrics(id_scores, ood_scores, 0.0, *numbers)
    assert all((each.low, each.high) == (None, None) for each in found.values())
    assert ood_metrics(id_scores, ood_scores, 0.0)["auroc"].low is not None


def test_copies_make_an_interval_no_shorter():
    id_scores, ood_scores = scores(60, 50)
    plain = auroc_influence(rank_scores(id_scores, ood_scores))
    numbers = torch.arange(60).repeat(4), torch.arange(60, 110).repeat(4)
    copied = auroc_influence(rank_scores(id_scores.repeat(4), ood_scores.repeat(4)), *numbers)
    assert standard_error([copied]) == pytest.approx(standard_error([plain]), rel=0.03)
    unaware = auroc_influence(rank_scores(id_scores.repeat(4), ood_scores.repeat(4)))
    assert standard_error([unaware]) == pytest.approx(standard_error([plain]) / 2, rel=0.03)


def test_the_mean_knows_what_its_sets_share():
    id_scores, ood_scores = scores(100, 80)
    images = torch.arange(100), torch.arange(100, 180), torch.arange(180, 260)
    one = ood_metrics(id_scores, ood_scores, 0.5, *images[:2])
    same = mean_over_sets({"a": one, "b": one})
    apart = mean_over_sets({"a": one, "b": ood_metrics(id_scores, ood_scores, 0.5, images[0], images[2])})
    for name in (each for each in METRICS if each != "best_f1"):
        alone = one[name].high - one[name].low
        assert same[name].value == apart[name].value == pytest.approx(one[name].value)
        assert same[name].high - same[name].low == pytest.approx(alone, rel=0.1)
        assert apart[name].high - apart[name].low < same[name].high - same[name].low
    unnumbered = mean_over_sets(dict.fromkeys("ab", ood_metrics(id_scores, ood_scores, 0.5)))
    for name in METRICS:
        assert (unnumbered[name].low, unnumbered[name].high) == pytest.approx((apart[name].low, apart[name].high))


def test_corrupted_images_are_paired_with_their_originals():
    generator = torch.Generator().manual_seed(0)
    inside = torch.randn(200, generator=generator)
    outside = 0.9 * inside + 0.3 * torch.randn(200, generator=generator) - 0.7
    numbers = torch.arange(200)
    paired, apart = ood_metrics(inside, outside, None, numbers, numbers), ood_metrics(inside, outside)
    wins = pairs(inside, outside)
    expected = (wins.mean(1) + wins.mean(0)).std() / math.sqrt(200)  # one contribution an image
    assert standard_error([paired["auroc"].source]) == pytest.approx(expected.item())
    for name in ("auroc", "aupr_in", "aupr_out", "fpr95"):
        assert paired[name].high - paired[name].low < apart[name].high - apart[name].low


def test_the_mean_of_one_set_is_that_set_and_of_none_an_error():
    one = ood_metrics(*CASES["plain"], threshold=0.5)
    assert mean_over_sets({"a": one}) == one
    lone = ood_metrics(torch.arange(30.0), torch.tensor([4.0]), 0.5)
    assert mean_over_sets({"a": one, "b": lone})["auroc"] == Estimate((one["auroc"].value + lone["auroc"].value) / 2)
    with pytest.raises(ValueError, match="at least one set"):
        mean_over_sets({})
    with pytest.raises(ValueError, match="level is 95"):
        ood_metrics(*CASES["plain"], level=95)


def test_the_curve_is_prolonged_below_the_lowest_id_image():
    """Scores at the quantiles of two normals: a line in normal quantiles, that is right beyond the sample too."""
    normal = NormalDist()
    inside, outside = (torch.tensor([normal.inv_cdf((k + 0.5) / n) for k in range(n)]) for n in (100, 20_000))
    ranking = rank_scores(inside + 1.5, outside)
    for share in (0.95, 0.98, 0.995, 0.9995):  # the lowest of 100 images is at 100 / 101
        assert _fpr(ranking, share) == pytest.approx(normal.cdf(normal.inv_cdf(share) - 1.5), abs=0.06)


def test_f1_is_taken_at_the_threshold_that_is_given():
    id_scores, ood_scores = scores(80, 120)
    for threshold in (-1.0, 0.3, 2.0):
        hits, misses = (id_scores >= threshold).sum().item(), (ood_scores >= threshold).sum().item()
        found = ood_metrics(id_scores, ood_scores, threshold)
        assert found["f1"].value == pytest.approx(2 * hits / (hits + misses + 80))
        assert found["f1"].value <= found["best_f1"].value
    assert "f1" not in ood_metrics(id_scores, ood_scores)


def test_an_average_of_influences_is_that_of_the_mean():
    id_scores, near = scores(40, 30)
    rankings = [rank_scores(id_scores, each) for each in (near, near - 0.5)]
    mean = average([auroc_influence(each) for each in rankings])
    v_id = torch.stack([pairs(id_scores, each).mean(1) for each in (near, near - 0.5)]).mean(0)
    own = sum(pairs(id_scores, each).mean(0).var() / 30 for each in (near, near - 0.5)) / 4
    assert standard_error([mean]) == pytest.approx(math.sqrt(v_id.var() / 40 + own))


# Simulations: three standard errors around 93 to 99 %

STUDIES = 400


@pytest.mark.slow
@pytest.mark.parametrize("spreads", statistics.SPREADS)
@pytest.mark.parametrize("value", [0.7, 0.98, 0.999])
def test_the_auroc_is_covered(value, spreads):
    got = statistics.coverage(statistics.World(value, spreads), 46, 154, STUDIES)["auroc"]
    assert 0.93 - 3 * math.sqrt(0.93 * 0.07 / STUDIES) <= got


@pytest.mark.slow
@pytest.mark.parametrize("value", [0.7, 0.9, 0.995])
def test_the_other_metrics_are_covered(value):
    got = statistics.coverage(statistics.World(value), 46, 154, STUDIES)
    assert all(0.93 - 3 * math.sqrt(0.93 * 0.07 / STUDIES) <= each for each in got.values()), got


@pytest.mark.slow
def test_means_over_sets_are_covered():
    worlds = tuple(map(statistics.World, (0.7, 0.9, 0.98)))
    for shared in (0.0, 0.5):
        got = statistics.coverage_of_means(worlds, 46, 154, 300, shared)
        assert all(0.93 - 3 * math.sqrt(0.93 * 0.07 / 300) <= each for each in got.values()), got


@pytest.mark.slow
def test_a_table_without_differences_rarely_claims_one():
    corrected, plain = statistics.claims(200)
    assert corrected <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200) and plain > 0.25
