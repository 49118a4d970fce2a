"""A whole evaluation from features, and how it grows: python -m bench.evaluation (--figure=growth.png also draws how)

Every detector fitted in one pass over the bank, ID test and six OOD sets scored, all metrics, no intervals; each size
in a process of its own, whose peak memory is stated beside its bank's.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch.nn.functional import normalize

from bench import chosen
from clip_ood.evaluation import DetectorSuite
from clip_ood.outputs import NegativeLabels, Outputs, Reference
from clip_ood.scores import Scores
from clip_ood.table import Row, TableMetrics, table_rows, with_intervals


class Sizes(NamedTuple):
    target: tuple[int, int, int] = (100_000, 768, 100)  # images of the bank, width, classes
    base: tuple[int, int, int] = (25_000, 192, 100)
    factors: tuple[int, ...] = (1, 4, 16)
    id: int = 10_000
    ood: int = 5_000
    sets: int = 6
    joint: int = 512
    words: int = 20_000  # negative labels: 15 % of WordNet


TINY = Sizes((300, 16, 5), (200, 8, 4), (2,), 40, 20, 2, 8, 200)
BATCH = 4096


class Made:
    """Features around class means; OOD sets around others. The head is least squares on the means."""

    def __init__(self, width: int, classes: int, joint: int, words: int) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.means = torch.randn(classes, width, generator=self.generator)
        text = normalize(torch.randn(classes, joint, generator=self.generator), dim=1)
        names = tuple(f"class {c}" for c in range(classes))
        weight = self.means / width
        others = normalize(torch.randn(words, joint, generator=self.generator), dim=1)
        bias = -0.5 * (weight * self.means).sum(dim=1)
        self.reference = Reference(names, text, 100.0, weight, bias, *2 * [NegativeLabels(text, others)])

    def batches(self, rows: int, shift: float = 0.0) -> Iterator[Outputs]:
        for start in range(0, rows, BATCH):
            n = min(BATCH, rows - start)
            labels = torch.randint(len(self.means), (n,), generator=self.generator)
            features = self.means[labels] + torch.randn(n, self.means.shape[1], generator=self.generator) + shift
            joint = self.reference.text_embeddings[labels]
            joint = joint + torch.randn(joint.shape, generator=self.generator) / 20
            logits = features @ self.reference.weight.T + self.reference.bias
            yield Outputs(features, normalize(joint, dim=1), logits, labels, torch.arange(start, start + n))


def measure(sizes: Sizes, images: int, width: int, classes: int) -> dict[str, Any]:
    """Seconds of each part, GiB of libraries alone, of the process's peak and of the bank, and each detector's share of scoring."""
    libraries = peak()
    made = Made(width, classes, sizes.joint, sizes.words)
    suite = DetectorSuite(made.reference)
    seconds = dict.fromkeys(("fit", "score", "metrics"), 0.0)

    def timed(part: str, work, *arguments):
        start = perf_counter()
        done = work(*arguments)
        seconds[part] += perf_counter() - start
        return done

    labels = []
    for batch in made.batches(images):
        labels.append(batch.labels)
        timed("fit", suite.update, batch)
    timed("fit", suite.fit)
    roles = {"id_test": "id"} | {f"ood_{number}": "ood" for number in range(sizes.sets)}
    scored = {}
    for number, (name, role) in enumerate(roles.items()):
        bank_labels = torch.cat(labels) if role == "id" else None
        size = sizes.id if role == "id" else sizes.ood
        shares = [timed("score", suite.score, batch, bank_labels) for batch in made.batches(size, 0.3 * number)]
        scored[name] = type(shares[0])(
            torch.cat([share.indices for share in shares]),
            {key: torch.cat([share.scores[key] for share in shares]) for key in shares[0].scores},
        )
    timed("metrics", table, scored, roles, list(suite.detectors))
    alone = shares_of(suite, next(made.batches(min(BATCH, sizes.id))))
    bank = images * width * 4 / 2**30
    about = {"detectors": len(suite.detectors), "libraries": libraries, "peak": peak(), "bank": bank, "alone": alone}
    return seconds | about


def peak() -> float:
    """Returns the most memory, in GiB, that this process had so far."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def shares_of(suite: DetectorSuite, batch: Outputs) -> dict[str, float]:
    """Returns, by detector, the share of one batch's scoring that each takes if it scores alone, the longest first."""
    seconds = {}
    for name, detector in suite.detectors.items():
        start = perf_counter()
        detector.score(batch)
        seconds[name] = perf_counter() - start
    total = sum(seconds.values())
    return {name: seconds[name] / total for name in sorted(seconds, key=seconds.get, reverse=True)}


def table(scored: dict[str, Scores], roles: dict[str, str], detectors: list[str]) -> list[Row]:
    """Returns the rows with DeLong's intervals, as the callback makes them."""
    metrics = TableMetrics(detectors, roles)
    for name, scores in scored.items():
        metrics.update(name, scores)
    sizes = {name: len(scores.indices) for name, scores in scored.items()}
    rows = table_rows(metrics.compute(), detectors, roles, dict.fromkeys(roles, ""), sizes)
    return with_intervals(rows, scored, roles)


def run(*size: int) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "bench.evaluation",
        *map(str, size),
        *(each for each in sys.argv[1:] if not each.startswith("--figure=")),
    ]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main(sizes: Sizes) -> None:
    found = run(*sizes.target)
    total = sum(found[part] for part in ("fit", "score", "metrics"))
    print(
        f"evaluation, {found['detectors']} detectors, bank {sizes.target[0]} x {sizes.target[1]}, {sizes.target[2]} classes, "
        f"{sizes.id} + {sizes.sets} x {sizes.ood} images  {total:.0f} s (fit {found['fit']:.0f}, score {found['score']:.0f}, "
        f"metrics {found['metrics']:.0f})  <= 180 s"
    )
    shares = ", ".join(f"{name} {100 * share:.0f}" for name, share in found["alone"].items() if share > 0.005)
    print(f"evaluation, share of each detector in scoring, percent  {shares}")
    print(
        f"evaluation, peak memory of the process above a bank of {found['bank']:.2f} GiB and imported libraries of "
        f"{found['libraries']:.2f} GiB  {found['peak'] - found['bank'] - found['libraries']:.2f} GiB  <= 1 GiB"
    )
    grown: dict[str, list[tuple[int, float, float]]] = {}
    for place, letter in enumerate("NDC"):
        lines = []
        for factor in sizes.factors:
            size = [value * factor if number == place else value for number, value in enumerate(sizes.base)]
            found = run(*size)
            total = sum(found[part] for part in ("fit", "score", "metrics"))
            lines.append(f"{letter} = {size[place]}: {total:.1f} s, {found['peak']:.2f} GiB")
            grown.setdefault(letter, []).append((size[place], total, found["peak"]))
        factors = ", ".join(f"x {factor}" for factor in sizes.factors)
        print(f"evaluation, {letter} {factors} from {' x '.join(map(str, sizes.base))}  {'; '.join(lines)}")
    for path in (option.removeprefix("--figure=") for option in sys.argv[1:] if option.startswith("--figure=")):
        draw(grown, Path(path))


def draw(grown: dict[str, list[tuple[int, float, float]]], path: Path) -> None:
    """Draws seconds and GiB over the size, an image of N, D and C, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    names = {"N": "images in the bank", "D": "width of features", "C": "classes"}
    for axes, (letter, points) in zip(figure.subplots(1, 3, sharey=True), grown.items(), strict=True):
        sizes, seconds, peaks = zip(*points, strict=True)
        axes.loglog(sizes, seconds, "o-", label="seconds")
        axes.loglog(sizes, peaks, "s--", label="peak memory of the process, GiB")
        axes.loglog(sizes, [seconds[0] * size / sizes[0] for size in sizes], ":", color="grey", label="linear")
        axes.set(xlabel=f"{letter}: {names[letter]}", xticks=sizes, xticklabels=[f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize="small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    size = [int(argument) for argument in sys.argv[1:] if argument.isdigit()]
    if size:
        print(json.dumps(measure(chosen(Sizes(), TINY), *size)))
    else:
        main(chosen(Sizes(), TINY))
