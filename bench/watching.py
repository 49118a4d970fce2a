"""A watched stream, where the truth is known: how often it alarms without a change, and how soon with one: python -m bench.watching

Scores are simulated: those of ID images are N(0, 1), of blurred images and of a new class N(−μ, 1), with μ such that their AUROC against ID
images is 0.7 and 0.95. Alarms without a change may be at most δ of the streams, to within three standard errors of the simulation; the
module ends with status 1 if they are more. Beside them stand the alarms of the same bets on p-values against the calibration scores alone,
which are neither independent nor uniform given these scores, and those of bursts. Delays are counted from the first changed image on; beside them stand
those of the simple jumper (Vovk et al. 2021, arXiv 2102.10439, J = 0.01) on the same p-values.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from bench import chosen
from clip_ood.stream.martingale import DELTA, Martingale
from clip_ood.stream.online_p_values import OnlinePValues

DELTAS = (0.01, 0.05)
CALIBRATED = (31, 200, 2000)
SHARES = (0.05, 0.2, 0.5)
KINDS = {"blurred images": 0.7, "a new class": 0.95}  # AUROC of ID images against them
BURST, ALIKE = 10, 0.9  # images of a burst, and the correlation of their scores


@dataclass(frozen=True)
class Sizes:
    """Streams without a change and their images; streams with one, their images before and after it."""

    streams: int = 400
    images: int = 100_000
    changed: int = 50
    before: tuple[int, ...] = (0, 5_000)
    after: int = 20_000


FULL, TINY = Sizes(), Sizes(4, 500, 2, (0, 50), 200)


def against_fixed(calibration: np.ndarray, scores: np.ndarray, generator: np.random.Generator) -> tuple:
    """Returns p and 1 − p of scores (N,) among the calibration scores alone, ties broken by a draw."""
    below, up_to = (np.searchsorted(np.sort(calibration), scores, side) for side in ("left", "right"))
    share, equal, total = 1 - generator.random(len(scores)), up_to - below + 1, len(calibration) + 1
    return (below + share * equal) / total, (total - below - share * equal).clip(1e-300) / total


def bursts(images: int, generator: np.random.Generator) -> np.ndarray:
    """Returns scores N(0, 1) of images that come in bursts, within which scores are correlated."""
    common = np.repeat(generator.normal(size=images // BURST + 1), BURST)[:images]
    return math.sqrt(ALIKE) * common + math.sqrt(1 - ALIKE) * generator.normal(size=images)


def highest(task: tuple[int, int, int]) -> tuple[float, float, float]:
    """The highest log S of one stream without a change: online, against fixed calibration scores, and of a stream in bursts."""
    calibrated, images, seed = task
    generator = np.random.default_rng((seed, calibrated))
    calibration, stream, together = (
        generator.normal(size=calibrated),
        generator.normal(size=images),
        bursts(images, generator),
    )
    found = []
    for low, high in (
        OnlinePValues(calibration, seed).take(stream),
        against_fixed(calibration, stream, generator),
        OnlinePValues(calibration, seed).take(together),
    ):
        martingale = Martingale()
        martingale.take(low, high)
        found.append(martingale.highest)
    return tuple(found)


def jumper(p_values: np.ndarray, rate: float = 0.01) -> np.ndarray:
    """Returns log S of the simple jumper for streams (R, T): three bets 1 + ε (p − ½), ε of −1, 0 and 1, (R, T)."""
    bets, capital = np.array([-1.0, 0.0, 1.0]), np.full((len(p_values), 3), 1 / 3)
    logs, total = np.empty(p_values.shape), np.zeros(len(p_values))
    for t in range(p_values.shape[1]):
        capital = ((1 - rate) * capital + rate / 3) * (1 + bets * (p_values[:, t, None] - 0.5))
        step = capital.sum(1, keepdims=True)
        capital, total = capital / step, total + np.log(step[:, 0])
        logs[:, t] = total
    return logs


def delays(logs: np.ndarray, before: int) -> list[int]:
    """Returns after how many changed images each of the streams (R, T) alarmed, of those that did and not before."""
    reached = logs >= -math.log(DELTA)
    first = np.where(reached.any(1), reached.argmax(1), -1)
    return [int(each) - before + 1 for each in first if each >= before]


def told(found: list[int], streams: int) -> str:
    """Says in how many streams a change was found, and after how many images."""
    late = "" if not found else f", median delay {np.median(found):,.0f}, 90 % within {np.quantile(found, 0.9):,.0f}"
    return f"found in {len(found)} of {streams}{late}"


def of_change(task: tuple[int, str, float, int, Sizes]) -> str:
    """A line about streams into which other images are mixed after some time."""
    calibrated, kind, share, before, sizes = task
    shift, rows, logs = math.sqrt(2) * NormalDist().inv_cdf(KINDS[kind]), [], []
    for seed in range(sizes.changed):
        generator = np.random.default_rng((seed, calibrated, before))
        scores = generator.normal(size=calibrated + before + sizes.after)
        scores[calibrated + before :] -= shift * (generator.random(sizes.after) < share)
        low, high = OnlinePValues(scores[:calibrated], seed).take(scores[calibrated:])
        rows.append(low)
        logs.append(Martingale().take(low, high))
    ours, theirs = delays(np.array(logs), before), delays(jumper(np.array(rows)), before)
    return (
        f"watching, n = {calibrated:,}: {100 * share:g} % {kind} after {before:,} images: {told(ours, sizes.changed)}  "
        f"(simple jumper: {told(theirs, sizes.changed)})"
    )


def of_no_change(calibrated: int, tops: np.ndarray, images: int) -> Iterator[tuple[str, bool]]:
    """Lines about the highest log S of streams without a change (R, 3), and whether each is as stated."""
    for delta in DELTAS:
        online, fixed, burst = (tops >= -math.log(delta)).mean(0)
        error = math.sqrt(delta * (1 - delta) / len(tops))
        well = bool(online <= delta + 3 * error)
        yield (
            f"watching, n = {calibrated:,}, {images:,} images without a change: alarms in {100 * online:.2f} % of {len(tops)} streams, "
            f"<= {100 * delta:g} % ± {100 * error:.2f}  {'well' if well else 'FALLS SHORT'}  (against fixed calibration scores "
            f"{100 * fixed:.1f} %; in bursts of {BURST} {100 * burst:.1f} %)",
            well,
        )


def speed(images: int) -> str:
    """A line about the time that ranks and bets take."""
    scores = np.random.default_rng(0).normal(size=images)
    start = time.perf_counter()
    Martingale().take(*OnlinePValues(scores[:200]).take(scores))
    return f"watching: {images:,} images ranked and bet on in {time.perf_counter() - start:.2f} s"


def main(sizes: Sizes) -> None:
    print(speed(sizes.images), flush=True)
    failed = 0
    with ProcessPoolExecutor(2) as pool:
        for calibrated in CALIBRATED:
            tasks = [(calibrated, sizes.images, seed) for seed in range(sizes.streams)]
            tops = np.array(list(pool.map(highest, tasks, chunksize=4)))
            for line, well in of_no_change(calibrated, tops, sizes.images):
                print(line, flush=True)
                failed += not well
        changes = [
            (calibrated, kind, share, before, sizes)
            for calibrated in CALIBRATED
            for kind in KINDS
            for share in SHARES
            for before in sizes.before
        ]
        for line in pool.map(of_change, changes):
            print(line, flush=True)
    if failed:
        sys.exit(f"{failed} lines fall short of what docs/watching.md states")


if __name__ == "__main__":
    main(chosen(FULL, TINY))
