"""Online p-values and the martingale over them: exact, uniform and independent without a change, the same in any batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, kstest

from clip_ood.errors import UserError
from clip_ood.stream.martingale import POWERS, Martingale
from clip_ood.stream.online_p_values import CHUNK, OnlinePValues


def draws(seed, count):
    return [((int(raw) >> 12) + 0.5) / 2**52 for raw in np.random.PCG64(seed).random_raw(count)]


def naive_p_values(calibration, stream, seed):
    """The definition, score by score."""
    before, found = list(calibration), []
    for score, share in zip(stream, draws(seed, len(stream)), strict=True):
        before.append(score)
        equal = sum(each == score for each in before)
        found.append((sum(each < score for each in before) + share * equal) / len(before))
    return found


def naive_martingale(p_values):
    """S_t as a sum over all starts and bets."""
    bets = [lambda p, k=k: k * p ** (k - 1) for k in POWERS] + [lambda p, k=k: k * (1 - p) ** (k - 1) for k in POWERS]
    found = []
    for t in range(1, len(p_values) + 1):
        total = 1 / (t + 1)
        for s in range(1, t + 1):
            total += sum(math.prod(map(bet, p_values[s - 1 : t])) for bet in bets) / len(bets) / (s * (s + 1))
        found.append(total)
    return found


def watched(calibration, stream, sizes, seed=0):
    """All p-values and log S, in batches of these sizes in turn."""
    online, martingale, p_values, logs, start = OnlinePValues(calibration, seed), Martingale(), [], [], 0
    for size in sizes * (len(stream) // sum(sizes) + 1):
        low, high = online.take(stream[start : start + size])
        p_values.append(low)
        logs.append(martingale.take(low, high))
        start += size
    return np.concatenate(p_values), np.concatenate(logs), martingale


def scores(kind, count, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "continuous": lambda: generator.normal(size=count),
        "ties": lambda: generator.integers(0, 5, count).astype(float),
        "all the same": lambda: np.full(count, 0.3),
    }[kind]()


@pytest.mark.parametrize("kind", ["continuous", "ties", "all the same"])
@pytest.mark.parametrize("calibrated", [0, 1, 40])
def test_p_values_are_those_of_the_definition(kind, calibrated):
    values = scores(kind, calibrated + 700)
    calibration, stream = values[:calibrated], values[calibrated:]
    p_values, complements = OnlinePValues(calibration, seed=3).take(stream)
    assert p_values == pytest.approx(naive_p_values(calibration, stream, 3), abs=1e-14)
    assert p_values + complements == pytest.approx(1, abs=1e-14)
    assert min(p_values.min(), complements.min()) > 0


@pytest.mark.parametrize("kind", ["continuous", "ties", "all the same"])
def test_batches_do_not_change_a_bit(kind):
    values = scores(kind, 3100)
    whole = watched(values[:100], values[100:], [3000])
    for sizes in ([1], [7, 1, 64], [CHUNK + 1], [1000]):
        p_values, logs, martingale = watched(values[:100], values[100:], sizes)
        assert np.array_equal(p_values, whole[0]) and np.array_equal(logs, whole[1])
        assert (martingale.log, martingale.highest, martingale.highest_at) == (
            whole[2].log,
            whole[2].highest,
            whole[2].highest_at,
        )
    assert not np.array_equal(watched(values[:100], values[100:], [3000], seed=1)[0], whole[0])


@pytest.mark.parametrize("kind", ["continuous", "ties", "all the same"])
def test_p_values_of_an_exchangeable_stream_are_uniform_and_independent(kind):
    for calibrated in (0, 31):
        values = scores(kind, calibrated + 20_000, seed=1)
        p_values, _ = OnlinePValues(values[:calibrated]).take(values[calibrated:])
        assert kstest(p_values, "uniform").pvalue > 0.001
        assert abs(np.corrcoef(p_values[1:], p_values[:-1])[0, 1]) < 4 / math.sqrt(len(p_values))


def test_the_martingale_is_the_sum_over_starts_and_bets():
    generator = np.random.default_rng(2)
    p_values = np.concatenate([generator.random(30), generator.random(30) ** 3])
    martingale = Martingale(0.05)
    logs = martingale.take(p_values, 1 - p_values)
    expected = naive_martingale(p_values)
    assert np.exp(logs) == pytest.approx(expected, rel=1e-10)
    assert (martingale.log, martingale.highest) == (logs[-1], logs.max()) and logs.max() > math.log(20)
    assert martingale.highest_at == 1 + int(np.argmax(expected))
    assert martingale.alarm == 1 + next(place for place, value in enumerate(expected) if value >= 20)


def test_its_mean_is_one_while_nothing_changes():
    """Each bet is a density, and after a few images the mean over many streams is 1 within the simulation's error."""
    grid = (np.arange(400_000) + 0.5) / 400_000
    for power in POWERS:
        assert (power * grid ** (power - 1)).mean() == pytest.approx(1, abs=2e-3)
    p_values = np.random.default_rng(3).random((4000, 4))
    values = np.array([np.exp(Martingale().take(each, 1 - each)[-1]) for each in p_values])
    assert abs(values.mean() - 1) < 4 * values.std() / math.sqrt(len(values))


@pytest.mark.parametrize("kind", ["continuous", "ties", "all the same"])
def test_false_alarms_are_at_most_delta(kind):
    """Of 300 streams of 1,000 images after 31 calibration images; the bound of the count is exceeded by chance in 1 of 10,000 cases."""
    alarms = 0
    for seed in range(300):
        values = scores(kind, 1031, seed)
        martingale = Martingale(0.1)
        martingale.take(*OnlinePValues(values[:31], seed).take(values[31:]))
        alarms += martingale.alarm is not None
    assert alarms <= binom.ppf(0.9999, 300, 0.1)


@pytest.mark.parametrize("shift", [-2.0, 2.0])
def test_a_change_is_found_in_either_direction_also_late(shift):
    generator = np.random.default_rng(4)
    stream = generator.normal(size=5200)
    stream[5000:] += shift
    _, _, martingale = watched(generator.normal(size=200), stream, [100])
    assert 5000 < martingale.alarm <= 5100


def test_a_quiet_stream_costs_no_more_than_the_logarithm_of_its_length():
    values = scores("continuous", 50_200)
    _, logs, martingale = watched(values[:200], values[200:], [50_000])
    assert (logs >= -np.log(np.arange(50_000) + 2) - 1e-9).all() and martingale.alarm is None


def test_a_changed_stream_overflows_nothing():
    martingale = Martingale()
    low = np.full(20_000, 1e-6)
    logs = martingale.take(low, 1 - low)
    assert np.isfinite(logs).all() and logs[-1] > 1000 and martingale.alarm == 1 + int(np.argmax(logs >= math.log(100)))


def test_nan_is_refused_before_anything_counts():
    values = scores("continuous", 60)
    online, untouched = OnlinePValues(values[:20]), OnlinePValues(values[:20])
    with pytest.raises(UserError, match="NaN"):
        online.take(np.array([0.1, math.nan]))
    with pytest.raises(UserError, match="NaN"):
        OnlinePValues(np.array([math.nan]))
    assert np.array_equal(online.take(values[20:])[0], untouched.take(values[20:])[0])
    assert len(online.take(np.empty(0))[0]) == 0


@pytest.mark.parametrize("delta", [0, 1, -0.1, math.nan])
def test_delta_is_a_probability(delta):
    with pytest.raises(UserError, match="between 0 and 1"):
        Martingale(delta)
