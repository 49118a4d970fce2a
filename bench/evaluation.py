"""A whole evaluation from features, and how it grows: python -m bench.evaluation

Every detector fitted in one pass over the bank, ID test and six OOD sets scored, all metrics, no intervals; each size
in a process of its own, whose peak memory is stated beside its bank's.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from time import perf_counter

import torch
from torch.nn.functional import normalize

from clip_ood.evaluation import DetectorSuite
from clip_ood.outputs import NegativeLabels, Outputs, Reference
from clip_ood.scores import Scores
from clip_ood.table import Row, TableMetrics, table_rows, with_intervals

TARGET = 100_000, 768, 100  # images of the bank, width, classes
BASE = 25_000, 192, 100
BATCH, ID, OOD, SETS, JOINT = 4096, 10_000, 5_000, 6, 512
WORDS = 20_000  # negative labels: 15 % of WordNet


class Made:
    """Features around class means; OOD sets around others. The head is least squares on the means."""

    def __init__(self, width: int, classes: int) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.means = torch.randn(classes, width, generator=self.generator)
        text = normalize(torch.randn(classes, JOINT, generator=self.generator), dim=1)
        names = tuple(f"class {c}" for c in range(classes))
        weight = self.means / width
        words = normalize(torch.randn(WORDS, JOINT, generator=self.generator), dim=1)
        bias = -0.5 * (weight * self.means).sum(dim=1)
        self.reference = Reference(names, text, 100.0, weight, bias, *2 * [NegativeLabels(text, words)])

    def batches(self, rows: int, shift: float = 0.0) -> Iterator[Outputs]:
        for start in range(0, rows, BATCH):
            n = min(BATCH, rows - start)
            labels = torch.randint(len(self.means), (n,), generator=self.generator)
            features = self.means[labels] + torch.randn(n, self.means.shape[1], generator=self.generator) + shift
            joint = self.reference.text_embeddings[labels] + torch.randn(n, JOINT, generator=self.generator) / 20
            logits = features @ self.reference.weight.T + self.reference.bias
            yield Outputs(features, normalize(joint, dim=1), logits, labels, torch.arange(start, start + n))


def measure(images: int, width: int, classes: int) -> dict[str, float]:
    """Seconds of each part, and GiB of the process's peak and of the bank."""
    made = Made(width, classes)
    suite = DetectorSuite(made.reference)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, KiB elsewhere
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
    roles = {"id_test": "id"} | {f"ood_{number}": "ood" for number in range(SETS)}
    scored = {}
    for number, (name, role) in enumerate(roles.items()):
        bank_labels = torch.cat(labels) if role == "id" else None
        size = ID if role == "id" else OOD
        shares = [timed("score", suite.score, batch, bank_labels) for batch in made.batches(size, 0.3 * number)]
        scored[name] = type(shares[0])(
            torch.cat([share.indices for share in shares]),
            {key: torch.cat([share.scores[key] for share in shares]) for key in shares[0].scores},
        )
    timed("metrics", table, scored, roles, list(suite.detectors))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    return seconds | {"detectors": len(suite.detectors), "peak": peak, "bank": images * width * 4 / 2**30}


def table(scored: dict[str, Scores], roles: dict[str, str], detectors: list[str]) -> list[Row]:
    """The rows with DeLong's intervals, as the callback makes them."""
    metrics = TableMetrics(detectors, roles)
    for name, scores in scored.items():
        metrics.update(name, scores)
    sizes = {name: len(scores.indices) for name, scores in scored.items()}
    rows = table_rows(metrics.compute(), detectors, roles, dict.fromkeys(roles, ""), sizes)
    return with_intervals(rows, scored, roles, 0, 0)


def run(*size: int) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.evaluation", *map(str, size)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    if len(sys.argv) == 4:
        print(json.dumps(measure(*map(int, sys.argv[1:]))))
        return
    found = run(*TARGET)
    total = sum(found[part] for part in ("fit", "score", "metrics"))
    print(
        f"evaluation, {found['detectors']} detectors, bank {TARGET[0]} x {TARGET[1]}, {TARGET[2]} classes, "
        f"{ID} + {SETS} x {OOD} images  {total:.0f} s (fit {found['fit']:.0f}, score {found['score']:.0f}, "
        f"metrics {found['metrics']:.0f})  <= 180 s"
    )
    print(
        f"evaluation, peak memory of the process above a bank of {found['bank']:.2f} GiB  "
        f"{found['peak'] - found['bank']:.2f} GiB  <= 1.5 GiB"
    )
    for place, letter in enumerate("NDC"):
        lines = []
        for factor in (1, 4, 16):
            size = [value * factor if number == place else value for number, value in enumerate(BASE)]
            found = run(*size)
            total = sum(found[part] for part in ("fit", "score", "metrics"))
            lines.append(f"{letter} = {size[place]}: {total:.1f} s, {found['peak']:.2f} GiB")
        print(f"evaluation, {letter} x 1, x 4, x 16 from {' x '.join(map(str, BASE))}  {'; '.join(lines)}")


if __name__ == "__main__":
    main()
