"""Conformal p-values and thresholds against their definition, and against what they promise."""

import math

import pytest
import torch

from clip_ood.calibration import Calibration


def test_p_values_are_those_of_the_definition():
    generator = torch.Generator().manual_seed(0)
    calibration, scores = (torch.randint(0, 30, (n,), generator=generator).float() for n in (57, 200))  # with ties
    expected = [(1 + sum(c <= s for c in calibration.tolist())) / 58 for s in scores.tolist()]
    assert Calibration(calibration).p_values(scores).tolist() == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("accept", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [99, 100, 118, 119, 1000])
def test_what_lies_below_the_threshold_has_a_small_p(n, accept):
    generator = torch.Generator().manual_seed(n)
    calibration = Calibration(torch.randn(n, generator=generator))
    scores = torch.cat([torch.randn(500, generator=generator), calibration.scores, torch.tensor([-99.0])])
    alpha = round(1 - accept, 10)
    flagged = calibration.p_values(scores) <= alpha + 1e-12
    assert torch.equal(scores < calibration.threshold(accept), flagged)
    assert flagged.any() and not flagged.all()


@pytest.mark.parametrize(("accept", "needed"), [(0.9, 9), (0.95, 19), (0.99, 99), (0.5, 1)])
def test_too_few_images_are_told_how_many_it_takes(accept, needed):
    assert math.isfinite(Calibration(torch.randn(needed)).threshold(accept))
    for n in {0, needed - 1}:
        with pytest.raises(ValueError, match=rf"takes {needed} ID val images or more .* there are {n}"):
            Calibration(torch.randn(n)).threshold(accept)


@pytest.mark.parametrize("accept", [0.0, 1.0, 1.5, -1.0])
def test_shares_outside_0_and_1_are_refused(accept):
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        Calibration(torch.randn(50)).threshold(accept)


def test_scores_that_are_not_a_number_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        Calibration(torch.tensor([0.0, math.nan]))


@pytest.mark.parametrize(("n", "accept"), [(30, 0.95), (99, 0.9)])
def test_random_splits_accept_the_expected_share(n, accept):
    generator = torch.Generator().manual_seed(1)
    shares = []
    for _ in range(200):
        scores = torch.randn(n + 50, generator=generator).exp()
        calibration = Calibration(scores[:n])
        shares.append((scores[n:] >= calibration.threshold(accept)).double().mean())
    shares = torch.stack(shares)
    error = shares.std() / math.sqrt(len(shares))
    assert abs(shares.mean() - calibration.expected(accept)) < 3 * error
