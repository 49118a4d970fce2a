"""An evaluation of ImageNet's size, whole, from a mapped store: python -m bench.imagenet (an hour or less, 12 GB of disk)

All default detectors are fitted on 1,281,167 images and score 50,000 ID and six times 10,000 OOD images, with all metrics and
intervals. Features are made up; what is measured is time, the memory that no file backs, and the share of the k-NN search. Then
k-NN searches once more by faiss's inverted lists: its time, what it finds, and the largest difference of an AUROC.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from time import perf_counter
from typing import NamedTuple

import torch

from bench import chosen
from bench.evaluation import Made, shares_of, table
from bench.store import anonymous_memory
from clip_ood.detectors.knn import KNN
from clip_ood.evaluation import DetectorSuite
from clip_ood.features.rows import Rows
from clip_ood.metrics.curves import curve_metrics
from clip_ood.metrics.ranking import rank_scores
from clip_ood.outputs import Outputs
from clip_ood.scores import Scores

BATCH = 8192


class Sizes(NamedTuple):
    images: int = 1_281_167
    width: int = 768
    classes: int = 1000
    id: int = 50_000
    ood: int = 10_000
    sets: int = 6
    joint: int = 512
    words: int = 20_000


TINY = Sizes(300, 16, 5, 40, 20, 2, 8, 200)


class Stored:
    """Features, embeddings and labels of a set in mapped files, read a batch at a time as the datamodule reads them."""

    def __init__(self, folder: Path, made: Made, rows: int, shift: float = 0.0) -> None:
        folder.mkdir()
        self.labels, self.reference, at = torch.empty(rows, dtype=torch.long), made.reference, 0
        widths = {"features": made.means.shape[1], "embeddings": made.reference.text_embeddings.shape[1]}
        with (folder / "features").open("wb") as features, (folder / "embeddings").open("wb") as embeddings:
            for batch in made.batches(rows, shift):
                features.write(batch.features.numpy().data)
                embeddings.write(batch.embeddings.numpy().data)
                self.labels[at : at + len(batch)] = batch.labels
                at += len(batch)
        self.rows = {
            name: Rows([torch.from_file(str(folder / name), size=rows * width).view(rows, width)])
            for name, width in widths.items()
        }

    def batches(self) -> Iterator[Outputs]:
        for indices in torch.arange(len(self.labels)).split(BATCH):
            features, embeddings = (self.rows[name].take(indices) for name in ("features", "embeddings"))
            logits = torch.addmm(self.reference.bias, features, self.reference.weight.T)
            yield Outputs(features, embeddings, logits, self.labels[indices], indices)


class Peak(Thread):
    """Looks twenty times a second at the memory that no file backs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self.over = 0, Event()

    def run(self) -> None:
        while not self.over.wait(0.05):
            self.bytes = max(self.bytes, anonymous_memory())


def main(sizes: Sizes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = Made(sizes.width, sizes.classes, sizes.joint, sizes.words)
        roles = {"id_test": "id"} | {f"ood_{number}": "ood" for number in range(sizes.sets)}
        bank = Stored(Path(folder, "bank"), made, sizes.images)
        sets = {
            name: Stored(Path(folder, name), made, sizes.id if role == "id" else sizes.ood, 0.3 * number)
            for number, (name, role) in enumerate(roles.items())
        }
        measure(sizes, made, bank, sets, roles)


def measure(sizes: Sizes, made: Made, bank: Stored, sets: dict[str, Stored], roles: dict[str, str]) -> None:
    before, peak, seconds, start = anonymous_memory(), Peak(), {}, perf_counter()
    peak.start()
    suite = DetectorSuite(made.reference)
    for batch in bank.batches():
        suite.update(batch)
    suite.fit()
    seconds["fit"] = perf_counter() - start
    scored = {}
    for name, stored in sets.items():
        parts = [suite.score(batch, bank.labels if roles[name] == "id" else None) for batch in stored.batches()]
        columns = {column: torch.cat([part.scores[column] for part in parts]) for column in parts[0].scores}
        scored[name] = Scores(torch.cat([part.indices for part in parts]), columns)
    seconds["score"] = perf_counter() - start - seconds["fit"]
    table(scored, roles, list(suite.detectors))
    seconds["metrics"] = perf_counter() - start - sum(seconds.values())
    peak.over.set()
    peak.join()
    shares = shares_of(suite, next(sets["id_test"].batches()))
    size = 4 * sizes.images * sizes.width / 2**30
    parts = ", ".join(f"{part} {each:.0f}" for part, each in seconds.items())
    print(
        f"ImageNet's size, {len(suite.detectors)} detectors, bank {sizes.images:,} x {sizes.width}, {sizes.classes} classes, {sizes.id:,} + "
        f"{sizes.sets} x {sizes.ood:,} images  {sum(seconds.values()) / 60:.1f} min ({parts} s)"
    )
    print(
        f"ImageNet's size, peak memory that no file backs, above a bank of {size:.2f} GiB  "
        f"{(peak.bytes - before) / 2**30 - size:.2f} GiB  <= 2 GiB"
    )
    told = ", ".join(f"{name} {100 * share:.1f}" for name, share in shares.items() if share > 0.001)
    print(f"ImageNet's size, share of each detector in scoring one batch, percent  {told}")
    approximate(bank, sets, {name: scores.scores["knn"] for name, scores in scored.items()})


def approximate(bank: Stored, sets: dict[str, Stored], exact: dict[str, torch.Tensor]) -> None:
    start, detector = perf_counter(), KNN(index="ivf")
    for batch in bank.batches():
        detector.update(batch)
    detector.fit()
    fitted = perf_counter()
    found = {name: torch.cat([detector.score(batch) for batch in stored.batches()]) for name, stored in sets.items()}
    searched = perf_counter() - fitted
    of_id = next(iter(found))
    gaps = [abs(auroc(found[of_id], found[name]) - auroc(exact[of_id], exact[name])) for name in list(sets)[1:]]
    print(
        f"ImageNet's size, 1-NN by inverted lists  made and tried in {fitted - start:.0f} s, searched in {searched:.0f} s; "
        f"{detector.notes[-1]}; AUROC at most {100 * max(gaps):.2f} points from the exact one's"
    )


def auroc(id_scores: torch.Tensor, ood_scores: torch.Tensor) -> float:
    return float(curve_metrics(rank_scores(id_scores, ood_scores))["auroc"])


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
