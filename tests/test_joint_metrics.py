"""Accuracy and rejection judged together: against naive loops, torch-uncertainty and torchmetrics."""

from __future__ import annotations

import math
from itertools import pairwise, permutations
from statistics import fmean

import pytest
import torch

from clip_ood.metrics import (
    OpenSetMetrics,
    RiskCoverage,
    augrc,
    auoscr,
    auoscr_influence,
    aurc,
    curves,
    interval,
    oscr_curve,
    rank_scores,
    scod_aurc,
    scod_losses,
)


def drawn(num_id, num_ood, decimals=None, accuracy=0.7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(num_id + num_ood, generator=generator, dtype=torch.float64)
    scores[:num_id] += 1
    scores = scores if decimals is None else scores.round(decimals=decimals)
    return scores[:num_id], torch.rand(num_id, generator=generator) < accuracy, scores[num_id:]


CASES = {
    "plain": drawn(60, 40),
    "heavy ties": drawn(50, 70, decimals=0),
    "all tied": (torch.zeros(7), torch.tensor([1, 1, 0, 1, 0, 0, 1]).bool(), torch.zeros(5)),
    "all correct": drawn(30, 20, accuracy=2.0),
    "none correct": drawn(30, 20, accuracy=-1.0),
    "two ID": drawn(2, 30),
    "one OOD": drawn(30, 1, decimals=0),
    "half precision": tuple(
        values.half() if values.is_floating_point() else values for values in drawn(40, 30, decimals=1)
    ),
}
case = pytest.mark.parametrize(("inside", "correct", "outside"), CASES.values(), ids=CASES.keys())


@case
def test_oscr_follows_its_definition(inside, correct, outside):
    """One threshold after the other, and one pair of images after the other."""
    points = [(0.0, 0.0)]
    for t in sorted({*inside.tolist(), *outside.tolist()}, reverse=True):
        ccr = sum(s >= t and right for s, right in zip(inside.tolist(), correct.tolist(), strict=True))
        points.append((sum(s >= t for s in outside.tolist()) / len(outside), ccr / len(inside)))
    fpr, rate = oscr_curve(inside, correct, outside)
    assert fpr.tolist() == pytest.approx([x for x, _ in points])
    assert rate.tolist() == pytest.approx([y for _, y in points])
    area = sum((x - w) * (y + v) / 2 for (w, v), (x, y) in pairwise(points))
    pairs = [
        right * ((s > t) + (s == t) / 2)
        for s, right in zip(inside.tolist(), correct.tolist(), strict=True)
        for t in outside.tolist()
    ]
    assert auoscr(inside, correct, outside) == pytest.approx(area, abs=1e-12)
    assert area == pytest.approx(fmean(pairs), abs=1e-12)


@case
def test_where_all_is_right_auoscr_is_auroc_and_where_nothing_is_zero(inside, correct, outside):
    every = torch.ones_like(correct)
    auroc = curves.curve_metrics(rank_scores(inside, outside))["auroc"]
    assert auoscr(inside, every, outside) == pytest.approx(auroc, abs=1e-12)
    assert auoscr(inside, ~every, outside) == 0
    assert auoscr(inside, correct, outside) <= correct.double().mean() + 1e-12


def naive_areas(losses):
    """Of losses in the order in which images are accepted: AURC and AUGRC, joined by straight lines from 1 / n to 1."""
    n, total, risks, generalised = len(losses), 0.0, [], []
    for count, loss in enumerate(losses, start=1):
        total += loss
        risks.append(total / count)
        generalised.append(total / n)
    return [sum((a + b) / 2 / n for a, b in pairwise(of)) / (1 - 1 / n) for of in (risks, generalised)]


def in_order(scores, losses):
    return [losses[i] for i in sorted(range(len(scores)), key=lambda i: -scores[i])]


@pytest.mark.parametrize("number", range(4))
def test_risk_coverage_follows_its_definition(number):
    scores, right, _ = drawn(57, 1, seed=number)
    found = aurc(scores, ~right), augrc(scores, ~right)
    assert found == pytest.approx(naive_areas(in_order(scores.tolist(), (~right).double().tolist())), abs=1e-12)


@pytest.mark.parametrize("area", [0, 1])
def test_ties_are_the_mean_over_their_orders(area):
    scores, losses = [3.0, 2.0, 2.0, 2.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0, 1.0, 0.0]
    orders = [
        naive_areas([losses[i] for i in order])[area]
        for order in permutations(range(6))
        if [scores[i] for i in order] == sorted(scores, reverse=True)
    ]
    assert len(orders) == 12 and len({round(value, 9) for value in orders}) > 1
    found = (aurc, augrc)[area](torch.tensor(scores), torch.tensor(losses))
    assert found == pytest.approx(fmean(orders), abs=1e-12)


@pytest.mark.parametrize("cost", [0.0, 0.3, 0.5, 1.0])
def test_scod_follows_its_definition(cost):
    inside, right, outside = drawn(40, 25)
    losses = [(1 - cost) * (not each) for each in right.tolist()] + [cost] * 25
    expected = naive_areas(in_order([*inside.tolist(), *outside.tolist()], losses))[0]
    assert scod_aurc(inside, right, outside, cost) == pytest.approx(expected, abs=1e-12)


def test_scod_at_the_ends_of_its_cost_sees_one_kind_of_mistake():
    inside, right, outside = drawn(40, 25)
    assert scod_aurc(inside, torch.ones_like(right), outside, 0.0) == 0
    assert scod_aurc(inside, right, outside, 1.0) == scod_aurc(inside, ~right, outside, 1.0) > 0
    assert scod_aurc(inside, right, outside[:0]) == pytest.approx(aurc(inside, ~right) / 2)


def test_areas_of_all_right_and_of_none_right():
    scores = torch.arange(5.0)
    assert aurc(scores, torch.zeros(5)) == augrc(scores, torch.zeros(5)) == 0
    assert aurc(scores, torch.ones(5)) == pytest.approx(1)
    assert augrc(scores, torch.ones(5)) == pytest.approx((1 / 5 + 1) / 2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cost", [0.0, 0.3, 1.0])
def test_risks_are_those_of_torch_uncertainty(seed, cost):
    theirs = pytest.importorskip("torch_uncertainty.metrics.classification", reason="needs torch-uncertainty")
    inside, right, outside = drawn(200, 130, seed=seed)
    confidence = 0.5 + inside.sigmoid() / 2  # of class 0, which is predicted everywhere
    for kind, ours in ((theirs.AURC, aurc), (theirs.AUGRC, augrc)):
        metric = kind()
        metric.update(torch.stack([confidence, 1 - confidence], dim=1), (~right).long())
        assert ours(inside, ~right) == pytest.approx(metric.compute().item(), abs=1e-6)
    scod = pytest.importorskip("torch_uncertainty.metrics.classification.scod_risk_coverage")
    losses = scod_losses(right, 130, cost)
    for kind, ours in ((scod.SCODAURC, aurc), (scod.SCODAUGRC, augrc)):
        metric = kind(ood_cost=cost)
        errors = torch.cat([~right, torch.zeros(130, dtype=torch.bool)])
        metric.update(-torch.cat([inside, outside]), errors, torch.arange(330) >= 200)
        assert ours(torch.cat([inside, outside]), losses) == pytest.approx(metric.compute().item(), abs=1e-6)


@case
def test_torchmetrics_versions_in_batches(inside, correct, outside):
    """Rows in any order, one that comes twice, and two detectors at once."""
    both, right = torch.cat([inside, outside]), torch.cat([correct, torch.ones(len(outside), dtype=torch.bool)])
    columns, is_id = torch.stack([both, -both], dim=1), torch.arange(len(both)) < len(inside)
    numbers = torch.cat([torch.arange(len(inside)), torch.arange(len(outside))])
    rows = torch.cat([torch.randperm(len(both), generator=torch.Generator().manual_seed(0)), torch.tensor([0])])
    joint, alone = OpenSetMetrics(["up", "down"], ood_cost=0.25), RiskCoverage(["up", "down"])
    for part in rows.split(16):
        joint.update(columns[part], is_id[part], right[part], numbers[part])
        of_id = part[is_id[part]]
        alone.update(columns[of_id], right[of_id], numbers[of_id])
    found = {name: value.item() for name, value in (joint.compute() | alone.compute()).items()}
    assert found == pytest.approx(
        {
            f"{name}/{metric}": value
            for name, sign in (("up", 1), ("down", -1))
            for metric, value in {
                "auoscr": auoscr(sign * inside, correct, sign * outside),
                "scod_aurc": scod_aurc(sign * inside, correct, sign * outside, 0.25),
                "aurc": aurc(sign * inside, ~correct),
                "augrc": augrc(sign * inside, ~correct),
            }.items()
        },
        abs=1e-12,
    )


def test_what_cannot_be_said_is_an_error():
    one, right = torch.tensor([1.0]), torch.tensor([True])
    with pytest.raises(ValueError, match="two images or more, got 1"):
        aurc(one, ~right)
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        augrc(torch.tensor([1.0, math.nan]), torch.zeros(2))
    with pytest.raises(ValueError, match=r"\(2,\) and losses \(1,\)"):
        aurc(torch.ones(2), torch.ones(1))
    with pytest.raises(ValueError, match="1 ID and 0 OOD"):
        auoscr(one, right, one[:0])
    with pytest.raises(ValueError, match="1 of 1 OOD scores"):
        auoscr(one, right, torch.tensor([math.nan]))
    with pytest.raises(ValueError, match=r"correct has shape \(2,\)"):
        auoscr(one, torch.ones(2), one)
    for cost in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="from 0 to 1"):
            scod_aurc(one, right, one, cost)
        with pytest.raises(ValueError, match="from 0 to 1"):
            OpenSetMetrics(ood_cost=cost)


def test_torchmetrics_versions_name_the_detector_that_fails():
    metric = RiskCoverage(["fine", "mine"])
    metric.update(torch.tensor([[1.0, math.nan], [2.0, 1.0]]), torch.tensor([True, False]))
    with pytest.raises(ValueError, match="mine: 1 of 2 scores are NaN"):
        metric.compute()
    metric.keep(["fine"])
    assert set(metric.compute()) == {"fine/aurc", "fine/augrc"}
    with pytest.raises(ValueError, match=r"correct has values \[2\], expected 0 \(wrong class\)"):
        metric.update(torch.ones(1, 1), torch.tensor([2]))


def test_intervals_of_auoscr_hold_what_they_promise():
    """Of 400 draws, the interval misses the limit of many images about as often as it says: 5 %, give or take three errors."""
    truth = auoscr(*drawn(4000, 4000, seed=1000))
    missed = 0
    for seed in range(400):
        inside, right, outside = drawn(60, 50, seed=seed)
        low, high = interval([auoscr_influence(rank_scores(inside, outside), right)])
        missed += not low <= truth <= high
    assert 0.05 - 3 * 0.011 < missed / 400 < 0.05 + 3 * 0.011
