"""Conformal p-values and thresholds against their definition, and against what they promise."""

import math

import pytest
import torch

from clip_ood.calibration import Calibration, Choice, summary


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


@pytest.mark.parametrize(("candidates", "images"), [(2, None), (12, 100), (12, None), (40, 30)])
def test_what_is_stated_after_a_choice_is_what_is_accepted(candidates, images):
    """Another simulation: exponential scores of the same order, the AUROC counted pair by pair."""
    generator, accepted, chosen = torch.Generator().manual_seed(7), [], []
    for _ in range(400):
        normal = torch.randn(candidates, 31, generator=generator)
        outside = torch.randn(candidates, images or 4000, generator=generator) - 1.8124
        aurocs = (normal[:, :, None] > outside[:, None]).double().mean(dim=(1, 2))
        best = aurocs.argmax()
        chosen.append(aurocs[best])
        threshold = Calibration(normal[best].exp()).threshold(0.95)
        accepted.append((torch.randn(4000, generator=generator).exp() >= threshold).double().mean())
    accepted = torch.stack(accepted)
    stated = Calibration(torch.randn(31), Choice(candidates, 0.9, images)).expected(0.95)
    assert stated == pytest.approx(accepted.mean().item(), abs=3 * accepted.std().item() / 20 + 0.005)
    assert stated < Calibration(torch.randn(31)).expected(0.95) - 0.005


def test_a_summary_says_what_was_chosen_by_the_images_that_calibrate_it():
    scores = torch.randn(31, generator=torch.Generator().manual_seed(0))
    stated = summary({"knn": Calibration(scores, Choice(12, 0.9, 100)), "mcm": Calibration(scores)}, 0.95)
    assert stated["expected"] == stated["chosen"]["knn"]["expected"] < 0.95
    assert stated["chosen"].keys() == {"knn"} and stated["chosen"]["knn"]["candidates"] == 12
    assert summary({"mcm": Calibration(scores)}, 0.95)["expected"] == 31 / 32


def test_many_images_and_candidates_take_no_time():
    assert Calibration(torch.randn(60_000), Choice(100_000, 0.99, None)).expected(0.95) == pytest.approx(0.95, abs=0.01)
