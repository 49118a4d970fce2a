"""Bets against the p-values of a stream: a conformal test martingale, which grows when the stream changes."""

from __future__ import annotations

import math

import numpy as np

from clip_ood.errors import UserError

POWERS = (0.5, 0.75, 0.875)  # of p, and the same of 1 − p
DELTA = 0.01  # the probability of a false alarm, unless another one is asked for


class Martingale:
    """A test martingale over p-values that are independent and uniform while the stream is exchangeable: nonnegative, 1 at the start.

    After t images it is S_t = 1 / (t + 1) + Σ_{s ≤ t} π(s) · mean_k Π_{s ≤ i ≤ t} f_k(p_i), π(s) = 1 / (s (s + 1)), with the densities f_k(p) = κ p^{κ−1} and κ (1 − p)^{κ−1}, κ of `POWERS`, which bet on low and on high p-values (power martingales: Vovk,
    Nouretdinov and Gammerman 2003, "Testing exchangeability on-line"). The share π(s) of the capital waits until image s and is bet from
    there on, so that a change at any time is found, and log S_t is at least −log (t + 1) however long the stream was quiet. A mixture of
    test martingales is one.

    By Ville's inequality P(S_t ≥ 1 / δ for any t) ≤ δ without a change. The alarm is the first such t (Vovk et al. 2021, arXiv
    2102.10439). All is in logarithms, and float64 sums run from image to image, so that batches do not matter. Raises: UserError for a δ
    that is no probability.

    >>> martingale = Martingale()
    >>> low = np.full(30, 0.01)
    >>> bool(martingale.take(low, 1 - low)[-1] > math.log(100)), martingale.alarm
    (True, 5)
    """

    def __init__(self, delta: float = DELTA) -> None:
        if not 0 < delta < 1:
            raise UserError(f"delta = {delta} must lie between 0 and 1, as 0.01: the probability of a false alarm")
        self.delta, self.limit = delta, -math.log(delta)  # of log S
        self.seen = 0
        self.log, self.highest, self.highest_at = 0.0, 0.0, 0  # log S_t, its maximum, and after which image it was
        self.alarm: int | None = None  # the number of the image, from 1, at which S_t reached 1 / δ
        count = 2 * len(POWERS)
        self._growth = np.zeros((count, 1))  # log Π f_k(p_i) over all images
        self._bet = np.full((count, 1), -np.inf)  # log Σ_s π(s) / Π_{i < s} f_k(p_i)

    def take(self, p_values: np.ndarray, complements: np.ndarray) -> np.ndarray:
        """Returns log S after each of the next images, by p (B,) and 1 − p (B,): (B,) float64."""
        if not len(p_values):
            return np.empty(0)
        powers = np.array(POWERS)[:, None]
        bets = np.concatenate([np.log(powers) + (powers - 1) * np.log(each) for each in (p_values, complements)])
        growth = np.add.accumulate(np.hstack([self._growth, bets]), axis=1)  # (K, 1 + B)
        t = self.seen + 1 + np.arange(len(p_values), dtype=np.float64)
        shares = -np.log(t) - np.log(t + 1) - math.log(len(bets))
        bet = np.logaddexp.accumulate(np.hstack([self._bet, shares - growth[:, :-1]]), axis=1)
        capital = np.vstack([-np.log(t + 1), growth[:, 1:] + bet[:, 1:]])
        logs = np.logaddexp.reduce(capital, axis=0)
        self._growth, self._bet = growth[:, -1:], bet[:, -1:]
        self._note(logs)
        return logs

    def _note(self, logs: np.ndarray) -> None:
        if self.alarm is None and (reached := np.flatnonzero(logs >= self.limit)).size:
            self.alarm = self.seen + 1 + int(reached[0])
        if logs[top := int(logs.argmax())] > self.highest:
            self.highest, self.highest_at = float(logs[top]), self.seen + 1 + top
        self.seen, self.log = self.seen + len(logs), float(logs[-1])
