"""Which images of a folder do not belong: python -m bench.folder

Odd images among the demo's 154 photographs, at 2, 10 and 20 % of all, over 6 fixed draws: the AUROC of single scores and of the ranking that
runs ship, and how the group that lies farthest apart fits the digits, which are all alike. Then, from features of 20,000 images,
suspects, groups and copies: their time and the process's peak memory; and what more images would take, reckoned from it.
The demo's features come from the store: `python train.py --config linear_probe_demo.yaml` fills it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench import chosen
from clip_ood.backbones.fingerprint import fingerprint
from clip_ood.config.schema import BackboneConfig, ImageSet
from clip_ood.data.listing import list_images
from clip_ood.detectors.names import UNLABELLED
from clip_ood.detectors.neighbours import nearest
from clip_ood.evaluation import DetectorSuite
from clip_ood.features.identity import firsts, originals
from clip_ood.features.rows import Rows
from clip_ood.features.store import FeatureStore
from clip_ood.folder.density import local_density
from clip_ood.folder.groups import LEAST as GROUP
from clip_ood.folder.groups import Group
from clip_ood.folder.ranking import rank_images
from clip_ood.metrics.curves import curve_metrics
from clip_ood.metrics.ranking import rank_scores
from clip_ood.outputs import Outputs, Reference

DEMO = Path("data/demo")
SHARES = (0.02, 0.1, 0.2)
KINDS = ("stamps", "symbols", "digits")
LEAST, AIM = (90.8, 75.5, 59.8), (92.0, 85.0, 70.0)  # mean AUROC over the four rows at these shares


class Sizes(NamedTuple):
    draws: int = 6
    images: int = 20_000
    width: int = 768
    copies: int = 500
    many: tuple[int, int] = (1_280_000, 1024)


TINY = Sizes(draws=1, images=300, width=16, copies=10, many=(3_000, 32))


def main(sizes: Sizes) -> None:
    if features := demo_features():
        table(features, sizes.draws)
    else:
        print(
            "folder, odd images: the store has no features of the demo: python train.py --config linear_probe_demo.yaml"
        )
    measured = json.loads(
        subprocess.run(
            [sys.executable, "-m", "bench.folder", *sys.argv[1:], "--measure"], check=True, stdout=subprocess.PIPE
        ).stdout
    )
    told(measured, sizes)


def demo_features() -> dict[str, Tensor] | None:
    """The features of the demo's ID images and OOD sets, each image once; None if they are not stored."""
    root = Path("features")
    if not root.is_dir():
        return None
    encoder = BackboneConfig(library="open_clip", model="local-dir:data/demo_encoder")
    store, found = FeatureStore(root, fingerprint(encoder, root / "hashes.json")), {}
    for name, folder in {"id": "id", **{kind: f"ood/{kind}" for kind in KINDS}}.items():
        images = list_images(name, ImageSet(folder=Path(folder)), DEMO, labelled=name == "id", seed=0)
        stored = store.image_set(name, images)
        if len(stored.missing()):
            return None
        features = stored.open()
        found[name] = features.features.take(torch.from_numpy(firsts(features.identities))).float()
    return found


def single_scores() -> dict[str, Callable[[Tensor], Tensor]]:
    """Scores of each of N images by their features (N, D), higher means more in-distribution, by leave-one-out."""

    def cosines(features: Tensor, k: int) -> Tensor:
        directions = normalize(features, dim=1)
        return nearest(directions, [directions], k + 1)[0][:, 1:]

    def lof(k: float) -> Callable[[Tensor], Tensor]:
        return lambda features: local_density(Rows([features]), k)

    return {
        "1-NN": lambda features: cosines(features, 1)[:, 0],
        "top 10": lambda features: cosines(features, 10).mean(dim=1),
        "LOF, k = 20": lof(20),
        "LOF, k = 30 %": lof(0.3),
    }


def mixtures(features: Mapping[str, Tensor], share: float, draws: int) -> Iterator[tuple[str, Tensor, np.ndarray]]:
    """Yields the name of the row, features (N, D) and which images are odd (N,), for each row and draw."""
    inside = features["id"]
    count = round(share / (1 - share) * len(inside))
    for draw in range(draws):
        generator = torch.Generator().manual_seed(draw)
        drawn = {kind: features[kind][torch.randperm(len(features[kind]), generator=generator)] for kind in KINDS}
        parts = [drawn[kind][: count // 3 + (place < count % 3)] for place, kind in enumerate(KINDS)]
        for name, odd in {**{kind: drawn[kind][:count] for kind in KINDS}, "all three mixed": torch.cat(parts)}.items():
            yield name, torch.cat([inside, odd]), np.arange(len(inside) + len(odd)) >= len(inside)


def table(features: Mapping[str, Tensor], draws: int) -> None:
    singles, found, fits, sizes_of = single_scores(), {}, {}, {}
    for share in SHARES:
        for row, images, odd in mixtures(features, share, draws):
            ranking = rank_images(Rows([images]), np.arange(len(images)))
            scores = {name: score(images).double() for name, score in singles.items()}
            scores |= {name: torch.from_numpy(values) for name, values in ranking.scores.items()}
            scores["as shipped"] = torch.from_numpy(ranking.score)
            for name, values in scores.items():
                found.setdefault((row, name, share), []).append(auroc(values, odd))
            if row == "digits":
                sizes_of[share] = int(odd.sum())
                fits.setdefault(share, []).append(fit(ranking.groups, odd))
    names = list(dict.fromkeys(name for _, name, _ in found))
    rows = list(dict.fromkeys(row for row, _, _ in found))
    for name in names:
        cells = [[100 * fmean(found[row, name, share]) for share in SHARES] for row in rows]
        means = [fmean(column) for column in zip(*cells, strict=True)]
        print(
            f"folder, AUROC at 2 / 10 / 20 % odd, {name:14s} "
            + ", ".join(f"{row} {told_of(cell)}" for row, cell in zip(rows, cells, strict=True))
            + f"; mean {' / '.join(f'{mean:.1f}' for mean in means)}",
            flush=True,
        )
    for share, mean, least, aim in zip(SHARES, means, LEAST, AIM, strict=True):
        parts = {name: 100 * fmean(fmean(found[row, name, share]) for row in rows) for name in ranking.scores}
        alone = "its parts alone have " + ", ".join(f"{name} {value:.1f}" for name, value in parts.items())
        reason = f"{alone}; joining ranks loses what only one part finds"
        verdict = "FALLS SHORT" if mean < least else "below the aim" if mean < aim else "aim reached"
        print(
            f"folder, as shipped, {100 * share:g} % odd  {mean:.1f}  >= {least} (aim {aim})  {verdict}"
            + (f": {reason}" if mean < aim else "")
        )
    for share, each in fits.items():
        pure, whole = (fmean(values) for values in zip(*each, strict=True))
        few = f"; fewer than {GROUP} images are no group" if sizes_of[share] < GROUP else ""
        well = sum(one >= 0.9 and other >= 0.8 for one, other in each)
        print(
            f"folder, digits, {100 * share:g} % odd: first group  {100 * pure:.0f} % pure, {100 * whole:.0f} % complete, both in {well} of {len(each)} draws  >= 90 %, 80 % at 10 and 20 %{few}"
        )


def told_of(cell: list[float]) -> str:
    return " / ".join(f"{value:.0f}" for value in cell)


def auroc(scores: Tensor, odd: np.ndarray) -> float:
    outside = torch.from_numpy(odd)
    return float(curve_metrics(rank_scores(scores[~outside], scores[outside]))["auroc"])


def fit(groups: list[Group], odd: np.ndarray) -> tuple[float, float]:
    """How pure and how complete the first group is."""
    if not groups:
        return 0.0, 0.0
    hits = odd[groups[0].images].sum()
    return hits / len(groups[0].images), hits / odd.sum()


def measure(sizes: Sizes) -> dict[str, float]:
    """Seconds of the parts and GiB of the process's peak and of the bank; features are uniform on the sphere around 50 places."""
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(50, sizes.width, generator=generator)
    bank = torch.empty(sizes.images, sizes.width)
    for start in range(0, sizes.images, 1000):
        block = bank[start : start + 1000]
        block.copy_(
            places[torch.randint(50, (len(block),), generator=generator)]
            + 2 * torch.randn(block.shape, generator=generator)
        )
    bank[-sizes.copies :] = bank[: sizes.copies]
    contents = np.random.default_rng(0).integers(0, 2**63, (sizes.images, 2)).astype(np.uint64)
    contents[-sizes.copies :] = contents[: sizes.copies]
    began = perf_counter()
    first = originals(contents)
    copies = perf_counter() - began
    began = perf_counter()
    ranking = rank_images(Rows([bank]), first)
    ranked = perf_counter() - began
    began = perf_counter()
    directions = normalize(bank, dim=1)
    nearest(directions, [directions], 2)
    searched = perf_counter() - began
    del directions
    began = perf_counter()
    score_defaults(bank, torch.from_numpy(first))
    scored = perf_counter() - began
    assert len(ranking.score) == sizes.images
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    seconds = {"copies": copies, "ranked": ranked, "searched": searched, "scored": scored}
    return seconds | {"peak": peak, "bank": bank.nbytes / 2**30}


def score_defaults(bank: Tensor, first: Tensor) -> None:
    """Scores each image (N, D) out of sample by the default detectors of a folder; first (N,) is the image that each is a copy of."""
    suite = DetectorSuite(Reference(), UNLABELLED)
    everything = Outputs(features=bank, indices=torch.arange(len(bank)), copy_of=first)
    batches = [slice(start, start + 4096) for start in range(0, len(bank), 4096)]
    for rows in batches:
        once = first[rows] == everything.indices[rows]
        suite.update(everything.map(lambda value, rows=rows, once=once: value[rows][once]))
    suite.fit()
    for rows in batches:
        suite.score(everything.map(lambda value, rows=rows: value[rows]))


def told(measured: Mapping[str, float], sizes: Sizes) -> None:
    seconds = sum(measured[part] for part in ("copies", "ranked", "searched", "scored"))
    print(
        f"folder, {sizes.images:,} x {sizes.width}  copies {measured['copies']:.2f} s, ranking and groups {measured['ranked']:.1f} s, nearest images "
        f"{measured['searched']:.1f} s, scores of the default detectors {measured['scored']:.1f} s: {seconds:.0f} s  <= 120 s; peak memory {measured['peak']:.2f} GiB, bank {measured['bank']:.2f} GiB  <= bank + 1 GiB"
    )
    images, width = sizes.many
    times = images / sizes.images
    hours = (measured["ranked"] * times**2 + measured["searched"] * times**2 * width / sizes.width) / 3600
    print(
        f"folder, {images:,} x {width}, reckoned: {hours:.0f} h by squares of the images, {images * (2 * 128 + 8) * 4 / 2**30:.1f} GiB beside the bank"
    )


if __name__ == "__main__":
    if "--measure" in sys.argv[1:]:
        print(json.dumps(measure(chosen(Sizes(), TINY))))
    else:
        main(chosen(Sizes(), TINY))
