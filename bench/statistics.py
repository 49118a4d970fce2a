"""What the intervals and tests of tables cover, in simulations where the truth is known: python -m bench.statistics

Scores are normal: ID images N(μ, σ²), OOD images N(0, τ²), with μ such that the AUROC has the value that is named, and σ : τ as named.
Nominal is 95 % for intervals, of which 93 to 99 % pass, and at most 5 % for claims. Every line ends with the simulation's own standard
error and a verdict; the module ends with status 1 if any line falls short of what docs/statistics.md states of it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from statistics import NormalDist, fmean

import torch
from torch import Tensor

from bench import chosen, out_of_sample
from clip_ood.metrics.influence import auroc_influence, average
from clip_ood.metrics.intervals import interval
from clip_ood.metrics.ood import Estimate, mean_over_sets, ood_metrics
from clip_ood.metrics.open_set import auoscr_influence
from clip_ood.metrics.paired import Line, auroc_difference, holm
from clip_ood.metrics.ranking import rank_scores

LEAST, MOST = 0.93, 0.99
SIZES = ((46, 154), (200, 400), (5_000, 10_000), (45_000, 2_000))
AUROCS = (0.7, 0.9, 0.98, 0.995, 0.999)
SPREADS = ((1, 1), (1, 3), (3, 1))


@dataclass(frozen=True)
class World:
    """Normal scores with a known AUROC: standard deviations of ID and OOD scores, the mean of ID scores."""

    auroc: float
    spreads: tuple[float, float] = (1, 1)

    @property
    def mean(self) -> float:
        return NormalDist().inv_cdf(self.auroc) * math.hypot(*self.spreads)

    def draw(self, num_id: int, num_ood: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws scores of ID and OOD images."""
        inside, outside = (torch.randn(count, generator=generator, dtype=torch.float64) for count in (num_id, num_ood))
        return inside * self.spreads[0] + self.mean, outside * self.spreads[1]

    def truth(self, num_id: int, num_ood: int, threshold: float) -> dict[str, float]:
        """Returns the metrics of infinitely many images, AUPR and F1 at these numbers of ID and OOD images."""
        shares = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
        quantiles = math.sqrt(2) * torch.erfinv(2 * shares - 1)
        inside, outside = quantiles * self.spreads[0] + self.mean, quantiles * self.spreads[1]
        accepted = 0.5 * torch.erfc(inside / self.spreads[1] / math.sqrt(2))  # the share of OOD above each ID quantile
        rejected = 0.5 * torch.erfc(
            (self.mean - outside) / self.spreads[0] / math.sqrt(2)
        )  # of ID below each OOD quantile
        normal = NormalDist()
        lowest = self.mean + self.spreads[0] * normal.inv_cdf(0.05)
        highest = self.spreads[1] * normal.inv_cdf(0.95)
        hits = normal.cdf((self.mean - threshold) / self.spreads[0])
        misses = normal.cdf(-threshold / self.spreads[1])
        ood = num_ood / num_id
        return {
            "auroc": self.auroc,
            "fpr95": normal.cdf(-lowest / self.spreads[1]),
            "fpr95_ood_positive": normal.cdf((highest - self.mean) / self.spreads[0]),
            "aupr_in": ((1 - shares) / (1 - shares + ood * accepted)).mean().item(),
            "aupr_out": (ood * shares / (ood * shares + rejected)).mean().item(),
            "f1": 2 * hits / (hits + misses * ood + 1),
        }


def covered(found: Mapping[str, Estimate], truth: Mapping[str, float]) -> dict[str, bool]:
    """Whether each interval holds the true value, and is of some width."""
    return {
        name: found[name].low - 1e-9 <= value <= found[name].high + 1e-9 and found[name].high > found[name].low
        for name, value in truth.items()
    }


def coverage(world: World, num_id: int, num_ood: int, studies: int, seed: int = 0) -> dict[str, float]:
    """The share of studies whose interval holds the truth, by metric."""
    generator = torch.Generator().manual_seed(seed)
    threshold = world.mean - 1.645 * world.spreads[0]  # as set on many other images
    truth = world.truth(num_id, num_ood, threshold)
    held = [covered(ood_metrics(*world.draw(num_id, num_ood, generator), threshold), truth) for _ in range(studies)]
    return {name: fmean(each[name] for each in held) for name in truth}


def coverage_of_means(
    worlds: tuple[World, ...], num_id: int, num_ood: int, studies: int, shared: float = 0.0
) -> dict[str, float]:
    """The same for the mean over OOD sets against the same ID images, σ = 1; the sets share some of their images."""
    generator = torch.Generator().manual_seed(1)
    truths = [world.truth(num_id, num_ood, 0.0) for world in worlds]
    truth = {name: fmean(each[name] for each in truths) for name in truths[0]}
    count, held = int(shared * num_ood), []
    for _ in range(studies):
        inside, first = worlds[0].draw(num_id, num_ood, generator)
        images, found = [torch.arange(num_ood) + num_id], {}
        for number, world in enumerate(worlds):
            outside = first if number == 0 else worlds[0].draw(0, num_ood, generator)[1]
            outside = torch.cat([first[:count], outside[count:]]) + (worlds[0].mean - world.mean)
            images = torch.arange(num_ood) + num_id + number * num_ood
            images[:count] = torch.arange(count) + num_id
            found[str(number)] = ood_metrics(inside, outside, 0.0, torch.arange(num_id), images)
        held.append(covered(mean_over_sets(found), truth))
    return {name: fmean(each[name] for each in held) for name in truth if name != "f1"}


def coverage_of_corrupted(studies: int, images: int = 200, alike: float = 0.8) -> float:
    """The coverage of the AUROC of ID images against the same images, corrupted: their scores are correlated."""
    generator, held = torch.Generator().manual_seed(2), []
    world = World(0.9)
    for _ in range(studies):
        inside, own = world.draw(images, images, generator)
        outside = alike * (inside - world.mean) + math.sqrt(1 - alike**2) * own
        numbers = torch.arange(images)
        held.append(covered(ood_metrics(inside, outside, None, numbers, numbers), {"auroc": 0.9})["auroc"])
    return fmean(held)


def coverage_with_outliers(studies: int, num_id: int, num_ood: int, share: float) -> float:
    """The coverage of the AUROC where sets are far apart, but for a share of ID images that lie below all OOD images."""
    generator, held = torch.Generator().manual_seed(5), []
    for _ in range(studies):
        inside, outside = World(0.999_999).draw(num_id, num_ood, generator)
        inside[torch.rand(num_id, generator=generator) < share] = -100.0
        held.append(covered(ood_metrics(inside, outside), {"auroc": (1 - share) * 0.999_999})["auroc"])
    return fmean(held)


def coverage_of_auoscr(studies: int, num_id: int, num_ood: int, auroc: float, accuracy: float) -> float:
    """The coverage of the AUOSCR where classes are right independently of the scores: it is then accuracy · AUROC."""
    generator, held = torch.Generator().manual_seed(6), []
    for _ in range(studies):
        inside, outside = World(auroc).draw(num_id, num_ood, generator)
        right = torch.rand(num_id, generator=generator) < accuracy
        low, high = interval([auoscr_influence(rank_scores(inside, outside), right)])
        held.append(low <= accuracy * auroc <= high)
    return fmean(held)


def claims(studies: int, runs: int = 3, detectors: int = 6, sets: int = 3, alike: float = 0.7) -> tuple[float, float]:
    """Of tables that compare runs without any difference, the share that claims one, corrected and not."""
    generator, corrected, plain = torch.Generator().manual_seed(3), 0, 0
    for _ in range(studies):
        lines = []
        for detector in range(detectors):
            common = [torch.randn(count, generator=generator) for count in (100, *[100] * sets)]
            influences = []
            for _ in range(runs):
                scores = [
                    alike * each + math.sqrt(1 - alike**2) * torch.randn(len(each), generator=generator)
                    for each in common
                ]
                influences.append([auroc_influence(rank_scores(scores[0] + 1, each)) for each in scores[1:]])
            for columns in (*([k] for k in range(sets)), range(sets)):
                first, *others = (average([of_run[k] for k in columns]) for of_run in influences)
                differences = [auroc_difference([first], [other]) for other in others]
                lines.append(Line(str(detector), str(columns), [], differences))
        plain += any(each.p <= 0.05 for line in lines for each in line.differences)
        corrected += any(each.claimed for line in holm(lines) for each in line.differences)
    return corrected / studies, plain / studies


def optimism(studies: int, num_id: int = 46, num_ood: int = 154) -> tuple[float, float]:
    """How far best_f1, and F1 at a threshold from 31 other ID images, lie above F1 of infinitely many images at the best and at that
    threshold."""
    generator, world = torch.Generator().manual_seed(4), World(0.9)
    best = max(world.truth(num_id, num_ood, step / 50)["f1"] for step in range(-100, 150))
    above_best, above = [], []
    for _ in range(studies):
        threshold = world.draw(31, 0, generator)[0].sort().values[0].item()
        found = ood_metrics(*world.draw(num_id, num_ood, generator), threshold)
        above_best.append(found["best_f1"].value - best)
        hits = NormalDist().cdf(world.mean - threshold)
        above.append(found["f1"].value - 2 * hits / (hits + NormalDist().cdf(-threshold) * num_ood / num_id + 1))
    return fmean(above_best), fmean(above)


@dataclass(frozen=True)
class Said:
    """A line: what was simulated, what was got, and whether it is as stated."""

    text: str
    well: bool


def share(what: str, got: float, studies: int, least: float = LEAST, most: float = 1.0) -> Said:
    """A line about a share that should lie between two others, to within three standard errors of the simulation."""
    error = math.sqrt(max(got * (1 - got), 0.0005) / studies)
    well = least - 3 * error <= got <= most + 3 * error
    verdict = "well" if well else "FALLS SHORT"
    if well and got > MOST and least == LEAST:
        verdict = "well, and wider than it must be"
    nominal = "<= 5" if most < 0.5 else "95"
    return Said(
        f"statistics, {what}: nominal {nominal} %, got {100 * got:.1f} % ± {100 * error:.1f} of {studies} studies  {verdict}",
        well,
    )


def _lines(task: tuple[Callable[..., object], tuple]) -> list[Said]:
    torch.set_num_threads(1)
    function, arguments = task
    return function(*arguments)


def of_sizes(num_id: int, num_ood: int, spreads: tuple[float, float], studies: int) -> list[Said]:
    """The lines of one pair of sizes and spreads."""
    lines = []
    for auroc in AUROCS:
        got = coverage(World(auroc, spreads), num_id, num_ood, studies)
        about = f"{num_id:,} ID and {num_ood:,} OOD images, spreads {spreads[0]} : {spreads[1]}, AUROC {auroc}"
        for name, value in got.items():
            stated = KNOWN.get((name, num_id, spreads, auroc), LEAST)
            lines.append(share(f"{name}, {about}", value, studies, stated))
    return lines


# What falls short of 93 %, as docs/statistics.md states it: few images of the class with the wider scores are misplaced.
KNOWN: dict[tuple[str, int, tuple[float, float], float], float] = {
    ("aupr_in", 46, (1, 3), 0.98): 0.89,
}


def of_means(num_id: int, num_ood: int, studies: int) -> list[Said]:
    """The lines of means over three sets."""
    lines = []
    for aurocs in ((0.7, 0.9, 0.98), (0.98, 0.995, 0.999), (0.999, 0.999, 0.999)):
        for shared in (0.0, 0.5):
            got = coverage_of_means(tuple(map(World, aurocs)), num_id, num_ood, studies, shared)
            about = f"mean over AUROCs {aurocs}, {num_id:,} ID and {num_ood:,} OOD images a set, {100 * shared:.0f} % of them shared"
            lines += [share(f"{name}, {about}", value, studies) for name, value in got.items()]
    return lines


def of_the_rest(studies: int) -> list[Said]:
    """Corrupted ID images, tables of comparisons, F1."""
    corrected, plain = claims(studies)
    best, at_threshold = optimism(studies)
    lines = [
        share("AUROC against the same images, corrupted", coverage_of_corrupted(studies), studies),
        share(
            f"tables of 48 differences, none of them real, that claim one (without correction {100 * plain:.0f} %)",
            corrected,
            studies,
            0,
            0.05,
        ),
    ]
    for num_id, num_ood, outliers in ((46, 154, 0.01), (46, 154, 0.02), (200, 400, 0.01), (5_000, 10_000, 0.001)):
        got = coverage_with_outliers(studies // (1 if num_id < 1000 else 4), num_id, num_ood, outliers)
        about = f"AUROC, {num_id:,} ID images of which {100 * outliers:g} % lie below all {num_ood:,} OOD images, the others above"
        lines.append(share(about, got, studies, 0.9))
    text = f"statistics, F1 above what it is of infinitely many images: best_f1 {100 * best:+.1f} points, f1 {100 * at_threshold:+.1f}"
    return [*lines, Said(f"{text}  {'well' if abs(at_threshold) < 0.01 else 'FALLS SHORT'}", abs(at_threshold) < 0.01)]


def of_auoscr(num_id: int, num_ood: int, studies: int) -> list[Said]:
    """The lines of AUOSCR."""
    lines = []
    for accuracy in (0.7, 0.95):
        for auroc in (0.7, 0.9, 0.98, 0.999):
            got = coverage_of_auoscr(studies, num_id, num_ood, auroc, accuracy)
            about = f"AUOSCR, {num_id:,} ID and {num_ood:,} OOD images, accuracy {accuracy}, AUROC {auroc}"
            few = num_id < 100 and accuracy > 0.9 and auroc > 0.95  # two mistakes are all that is lost
            lines.append(share(about, got, studies, 0.9 if few else LEAST))
    return lines


def of_calibration(images: int, scale: float) -> list[Said]:
    """Thresholds that the bank's own images calibrate."""
    return [Said(*line) for line in out_of_sample.lines(images, scale)]


def tasks(scale: float) -> Iterator[tuple[Callable[..., list[Said]], tuple]]:
    """Everything that is simulated, the longest first."""
    for num_id, num_ood in reversed(SIZES):
        studies = max(5, int(scale * (1000 if num_id < 1000 else 400)))
        yield from ((of_sizes, (num_id, num_ood, spreads, studies)) for spreads in SPREADS)
    yield from ((of_means, (*sizes, max(5, int(scale * 600)))) for sizes in SIZES[:2])
    yield from ((of_auoscr, (*sizes, max(5, int(scale * 1000)))) for sizes in SIZES[:2])
    yield from ((of_calibration, (images, scale)) for images in reversed(out_of_sample.SIZES))
    yield of_the_rest, (max(5, int(scale * 1000)),)


def main(scale: float) -> None:
    with ProcessPoolExecutor(2) as pool:
        failed = 0
        for lines in pool.map(_lines, tasks(scale)):
            for line in lines:
                print(line.text, flush=True)
                failed += not line.well
    if failed and scale == 1:
        sys.exit(f"{failed} lines fall short of what docs/statistics.md states")


if __name__ == "__main__":
    main(chosen(1.0, 0.005))
