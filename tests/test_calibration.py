"""Conformal p-values and thresholds against their definition, and against what they promise."""

import math
from fractions import Fraction

import pytest
import torch

from clip_ood.calibration import Calibration, Choice, benjamini_hochberg, summary


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
        with pytest.raises(ValueError, match=rf"takes {needed} ID images or more .* there are {n}"):
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


def flagged_by_loop(ranks: list[int], n: int, fdr: str) -> list[bool]:
    """Benjamini and Hochberg's rule as it is written, in whole fractions: p-values are ranks / (n + 1)."""
    m, limit = len(ranks), Fraction(0)
    for k in range(1, m + 1):
        if sum(Fraction(rank, n + 1) <= Fraction(fdr) * k / m for rank in ranks) >= k:
            limit = Fraction(fdr) * k / m
    return [Fraction(rank, n + 1) <= limit for rank in ranks]


@pytest.mark.parametrize("fdr", ["0.05", "0.1", "0.3", "0.7"])
@pytest.mark.parametrize(("n", "m"), [(9, 1), (19, 10), (29, 30), (99, 60)])
def test_images_are_flagged_as_a_loop_over_fractions_flags_them(n, m, fdr):
    generator, some = torch.Generator().manual_seed(n), 0
    for odd in range(m + 1):
        ranks = torch.randint(1, n + 2, (m,), generator=generator)
        ranks[:odd] = ranks[:odd] // (n + 1) + 1
        expected = flagged_by_loop(ranks.tolist(), n, fdr)
        assert benjamini_hochberg(ranks.double() / (n + 1), float(fdr)).tolist() == expected
        some += sum(expected)
    assert some or (n + 1) * float(fdr) < 1
    assert benjamini_hochberg(torch.empty(0), float(fdr)).tolist() == []


@pytest.mark.parametrize(("n", "odd", "fdr"), [(200, 20, 0.1), (499, 0, 0.2), (60, 50, 0.2)])
def test_the_share_of_id_images_among_the_flagged_is_at_most_the_rate(n, odd, fdr):
    generator, shares, each_alone = torch.Generator().manual_seed(3), [], []
    for _ in range(1500):
        calibration = Calibration(torch.randn(n, generator=generator))
        new = torch.randn(100, generator=generator)
        new[:odd] -= 4
        p_values = calibration.p_values(new)
        for flagged, found in ((benjamini_hochberg(p_values, fdr), shares), (p_values <= fdr, each_alone)):
            found.append((flagged[odd:].sum() / flagged.sum().clamp(min=1)).item())
    mean, error = torch.tensor(shares).mean().item(), torch.tensor(shares).std().item() / math.sqrt(len(shares))
    assert mean <= fdr * (100 - odd) / 100 + 3 * error
    assert mean >= 0.5 * fdr * (100 - odd) / 100  # the rate is used
    assert torch.tensor(each_alone).mean() > 1.5 * fdr or odd == 50  # a threshold for each image does not keep it


@pytest.mark.parametrize(("n", "m", "odd"), [(31, 100, 40), (200, 100, 20)])
def test_what_is_stated_of_the_flagged_after_a_choice_is_what_is_found(n, m, odd):
    """12 candidates with an AUROC of 0.9 on 100 OOD images; the rate alone would promise too much."""
    generator, shares, stated = torch.Generator().manual_seed(7), [], []
    for _ in range(400):
        inside = torch.randn(12, n, generator=generator)
        outside = torch.randn(12, 100, generator=generator).sort(dim=1).values - 1.8124
        best = inside[torch.searchsorted(outside, inside).double().mean(dim=1).argmax()]
        calibration = Calibration(best, Choice(12, 0.9, 100))
        new = torch.randn(m, generator=generator)
        new[:odd] -= 4
        flagged = benjamini_hochberg(calibration.p_values(new), 0.1)
        shares.append((flagged[odd:].sum() / flagged.sum().clamp(min=1)).item())
        if flagged.any():
            stated.append(calibration.false_share(m, int(flagged.sum()), 0.1))
    mean, error = torch.tensor(shares).mean().item(), torch.tensor(shares).std().item() / math.sqrt(len(shares))
    bound = torch.tensor(stated).mean().item() * (m - odd) / m
    assert bound == pytest.approx(mean, abs=3 * error + 0.01)
    assert mean - 3 * error > 0.1 * (m - odd) / m
    assert calibration.false_share(m, 0, 0.1) == Calibration(best).false_share(m, 50, 0.1) == 0.1


def test_how_many_must_be_odd_at_once_is_the_fewest_that_can_be_flagged():
    for n in (9, 31, 99):
        calibration = Calibration(torch.randn(n))
        for m in (1, 7, 40, 200):
            fewest = calibration.fewest(m, 0.1)
            lowest = torch.ones(m, dtype=torch.float64)
            lowest[:fewest] = 1 / (n + 1)
            assert benjamini_hochberg(lowest, 0.1).sum() == fewest
            lowest[fewest - 1] = 1.0
            assert not benjamini_hochberg(lowest, 0.1).any()
    with pytest.raises(ValueError, match=r"rate of 5 % takes 19 ID images or more .* there are 18"):
        Calibration(torch.randn(18)).fewest(10**6, 0.05)
    with pytest.raises(ValueError, match=r"fdr = 1\.5 must lie between 0 and 1"):
        benjamini_hochberg(torch.ones(3), 1.5)
