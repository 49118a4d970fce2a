"""Which label-free scores find the images that do not belong, in mixtures of the demo's ID classes: python -m bench.label_free

Every image of a mixture is scored without itself: by leave-one-out or, where that is not exact, by five folds, and then ranked. The
odd images are of other ID classes than the rest, as they are or drawn together to half their distances (`tight`); with 0 % odd the
bank holds none, and up to 15 are new. The demo's OOD sets are not read.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench import chosen
from clip_ood.detectors.build import build_detectors
from clip_ood.detectors.detector import Detector
from clip_ood.detectors.names import UNLABELLED
from clip_ood.folder.consensus import consensus
from clip_ood.metrics.curves import curve_metrics
from clip_ood.metrics.ranking import rank_scores
from clip_ood.outputs import Outputs, Reference

SHARES = (0.0, 0.02, 0.1, 0.2)
FOLDS, NEW = 5, 15
CONSENSUS = "consensus of the default"
SPECS: dict[str, Any] = {
    f"{name} k = {k}": {"name": name, "k": k} | more
    for name, more, counts in (
        ("knn", {}, (1, 10, 0.1, 0.2)),
        ("knn", {"kth": True}, (0.1, 0.2)),
        ("lof", {}, (10, 20, 0.1, 0.2, 0.3)),
    )
    for k in counts
}
SPECS = {name.replace("knn", "kth") if "kth" in spec else name: spec for name, spec in SPECS.items()}
SPECS |= {name: {"name": name} for name in ("gaussian_pp", "pca")}


class Sizes(NamedTuple):
    draws: int = 4
    odd: tuple[int, ...] | None = None  # the classes that are odd in turn, or all


TINY = Sizes(1, (1,))


class Mixture(NamedTuple):
    """Features (N, D) of which the last are odd, and how many images the bank holds: all, or those that are not odd."""

    features: Tensor
    odd: int
    bank: int


def photographs() -> tuple[Tensor, Tensor]:
    """Returns features (N, D) and classes (N,) of the demo's ID images, from the feature store."""
    from clip_ood.config.loading import load_config
    from clip_ood.experiments.benchmarks import load_benchmark
    from clip_ood.experiments.extraction import load_features
    from clip_ood.experiments.trainer import new_trainer

    config = load_config("zero_shot_demo.yaml", ["--data.ood={}"])
    benchmark = load_benchmark(config)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer = new_trainer(off, {"accelerator": "cpu", "devices": 1})
    with tempfile.TemporaryDirectory() as folder:
        stored, _ = load_features(config, benchmark, trainer, Path(folder))
    key = benchmark.parts["train"].images
    rows = stored[key].features
    return rows.take(torch.arange(len(rows))).float(), torch.tensor(benchmark.images[key].labels)


def made() -> tuple[Tensor, Tensor]:
    """Returns features and classes of made-up images, for a trial."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(100) % 5
    return torch.randn(5, 8, generator=generator)[labels] + torch.randn(100, 8, generator=generator), labels


def mixtures(features: Tensor, labels: Tensor, sizes: Sizes) -> Iterator[tuple[tuple[str, float, str], Mixture]]:
    """Yields mixtures of three kinds with their kind, share and spread: one class odd, one class normal, three classes normal."""
    classes = labels.unique().tolist()
    for draw in range(sizes.draws):
        for of in classes if sizes.odd is None else sizes.odd:
            generator = torch.Generator().manual_seed(1000 * draw + of)
            drawn = torch.tensor(classes)[torch.randperm(len(classes), generator=generator)[:3]]
            normal = {
                "one class odd": labels != of,
                "one class normal": labels == of,
                "three normal": torch.isin(labels, drawn),
            }
            for kind, inside in normal.items():
                for share in SHARES:
                    for spread, factor in (("as they are", 1.0), ("tight", 0.5)):
                        if kind == "one class normal" and inside.sum() < 16 and sizes.odd is None:
                            continue  # 2 % would be no image
                        yield (kind, share, spread), _mixed(features, labels, inside, share, factor, generator)


def _mixed(
    features: Tensor, labels: Tensor, inside: Tensor, share: float, factor: float, generator: torch.Generator
) -> Mixture:
    normal, odd = inside.nonzero()[:, 0], (~inside).nonzero()[:, 0]
    normal, odd = (each[torch.randperm(len(each), generator=generator)] for each in (normal, odd))
    if factor < 1:
        odd = odd[labels[odd] == labels[odd[0]]]  # a tight group is of one class
    if share:
        count = max(1, min(len(odd), round(share / (1 - share) * len(normal))))
        normal = normal[: round(count * (1 - share) / share)]
    else:
        count = min(len(odd), NEW)
    odd = features[odd[:count]]
    together = odd[:1] + factor * (odd - odd[:1])
    return Mixture(torch.cat([features[normal], together]), count, len(normal) + (count if share else 0))


def scored(spec: Mapping[str, Any], mixture: Mixture) -> Tensor:
    """Returns the rank of each image of a mixture, as a share, by scores of a detector that has not seen it."""
    images = torch.arange(len(mixture.features))
    rows = Outputs(
        features=mixture.features, indices=images, copy_of=images.where(images < mixture.bank, torch.tensor(-1))
    )
    if _made(spec).leaves_one_out:
        return _ranks(_fitted(spec, rows, images < mixture.bank).score(rows))
    folds = torch.randperm(mixture.bank, generator=torch.Generator().manual_seed(0)) % FOLDS
    found = torch.zeros(len(images), dtype=torch.float64)
    for fold in range(FOLDS):
        held_out = torch.zeros(len(images), dtype=torch.bool)
        held_out[: mixture.bank] = folds == fold
        scores = _fitted(spec, rows, ~held_out & (images < mixture.bank)).score(rows)
        places = (scores[:, None] > scores[held_out]).double().mean(dim=1)  # in the fold
        found += places.where(held_out, (images >= mixture.bank) * places / FOLDS)
    return _ranks(found)


def _made(spec: Mapping[str, Any]) -> Detector:
    return next(iter(build_detectors([spec], Reference(), {"features"})[0].values()))


def _fitted(spec: Mapping[str, Any], rows: Outputs, inside: Tensor) -> Detector:
    others = int(inside.sum()) - 1
    detector = _made(spec | {"k": min(spec["k"], others)} if "k" in spec else spec)
    detector.update(rows.map(lambda value: value[inside]))
    detector.fit()
    return detector


def _ranks(scores: Tensor) -> Tensor:
    """Returns (N,) in 0 … 1; ties have one rank."""
    ordered = scores.double().sort().values
    return (torch.searchsorted(ordered, scores.double()) + torch.searchsorted(ordered, scores.double(), right=True)) / (
        2 * len(scores)
    )


def main(sizes: Sizes) -> None:
    features, labels = made() if sizes == TINY else photographs()
    # an isometry of the unit sphere into the dimensions that these images span, in which covariances are small
    unit = normalize(features.double(), dim=1)
    features = (unit @ torch.linalg.svd(unit, full_matrices=False).Vh.T).float()
    default = [
        name for name, spec in SPECS.items() if spec in UNLABELLED
    ]  # 1-NN, which they have by its name alone, is not among them
    found: dict[str, dict[tuple, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell, mixture in mixtures(features, labels, sizes):
        ranks = {name: scored(spec, mixture) for name, spec in SPECS.items()}
        ranks[CONSENSUS] = torch.from_numpy(consensus({name: ranks[name].numpy() for name in default}))
        for name, each in ranks.items():
            normal, odd = each.tensor_split([len(each) - mixture.odd])
            found[name][cell].append(float(curve_metrics(rank_scores(normal, odd))["auroc"]))
    means = {name: {cell: 100 * sum(each) / len(each) for cell, each in cells.items()} for name, cells in found.items()}
    print(f"AUROC of odd images, mean over mixtures of {len(labels)} images: as they are / tight, at each share; mean")
    for name in sorted(means, key=lambda name: -sum(means[name].values())):
        print(f"{name:<26}{_row(means[name])}", flush=True)


def _row(cells: Mapping[tuple, float]) -> str:
    def mean(share: float | None, spread: str | None) -> float:
        some = [each for (_, s, t), each in cells.items() if share in (None, s) and (spread is None or t == spread)]
        return sum(some) / len(some)

    parts = [f"{share:.0%} {mean(share, 'as they are'):4.1f} / {mean(share, 'tight'):4.1f}" for share in SHARES]
    return "  ".join(
        [*parts, f"all {mean(None, 'as they are'):.1f} / {mean(None, 'tight'):.1f}", f"{mean(None, None):.1f}"]
    )


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
