"""Scores the training images of a run by what has not seen them: fits method and detectors once for each fold, without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clip_ood.config.schema import Config
from clip_ood.cross_fit import CrossFit, folds, has_seen, share_below
from clip_ood.data.benchmark import Benchmark, Part
from clip_ood.detectors.build import load_class
from clip_ood.detectors.names import read_specs
from clip_ood.errors import ConfigError
from clip_ood.experiments.leaks import Leaks
from clip_ood.experiments.refit import refit
from clip_ood.features.store import TextEmbeddings
from clip_ood.features.stored_set import Features
from clip_ood.folder.copy_groups import first_copies
from clip_ood.scores import Scores
from clip_ood.terminal.shown import say

TESTED = "id_test"


def without_copies(benchmark: Benchmark, leaks: Leaks, features: Mapping[str, Features]) -> tuple[Benchmark, Tensor]:
    """Returns the benchmark with a bank that has one image of each group of copies, and of what bank image each training image is one:
    its row (N,), or −1."""
    train, bank = benchmark.parts["train"], benchmark.parts["bank"]
    readable = features[train.images].valid.numpy()
    rows, among = (np.sort(np.asarray(part.rows, int)) for part in (train, bank))
    rows, among = rows[readable[rows]], among[readable[among]]
    group = rows[first_copies(leaks.copies, train.key, rows)]  # of each, by the row of its first image
    of_bank, first = np.unique(group[np.searchsorted(rows, among)], return_index=True)
    in_bank = np.full(len(readable), -1)
    in_bank[of_bank] = among[first]
    found = np.full(len(readable), -1)
    found[rows] = in_bank[group]
    kept = replace(bank, rows=among[first].tolist())
    if len(kept.rows) < 2:
        raise ConfigError(
            f"evaluation.cross_fit compares the ID images with each other, and of these there are {len(kept.rows)} that can be read and "
            "are no copies: name two or more (data.id)"
        )
    return replace(benchmark, parts=benchmark.parts | {"bank": kept}), torch.from_numpy(found)


def cross_fit(
    config: Config,
    benchmark: Benchmark,
    features: dict[str, Features],
    text: TextEmbeddings | None,
    copy_of: Tensor,
    leaks: Leaks,
    quiet: bool,
) -> CrossFit:
    """Scores each training image by the fold that it was left out of; all processes call this together.

    `benchmark` and `copy_of` are those of `without_copies`. Nothing is fitted if all detectors leave out single neighbours and the method
    trains no head.
    """
    specs = _specs(config)
    if specs is None:
        return CrossFit(copy_of)
    dealt = _dealt(config, benchmark, features, leaks)
    parts = benchmark.parts
    alone = not parts[TESTED].rows  # the training images are those that OOD sets are compared with
    sets = [part.name for part in parts.values() if part.role in ("csid", "ood")] if alone else []
    scores: dict[str, Tensor] = {}
    shares: dict[str, dict[str, Tensor]] = {}
    predictions = torch.full_like(copy_of, -1)
    missing: dict[str, str] = {}
    count = int(dealt.max()) + 1
    for fold in range(count):
        if not quiet:
            say(f"Cross-fitting: fold {fold + 1} of {count}", flush=True)
        evaluation = refit(config, _fold(benchmark, dealt, fold, sets), features, text, specs)
        missing |= {
            each.detector: f"without fold {fold + 1} of {count}, it {each.reason}" for each in evaluation.suite.omitted
        }
        found = evaluation.scored
        inside = found[TESTED]
        if inside.predictions is not None:
            predictions[inside.indices] = inside.predictions
        for name, values in inside.scores.items():
            detector = evaluation.suite.detectors[name]
            if detector.leaves_one_out or not has_seen(detector):
                continue
            _put(scores, name, inside, values, len(copy_of))
            _put(shares.setdefault("train", {}), name, inside, share_below(values, values), len(copy_of))
            for other in sets:
                share = share_below(found[other].scores[name], values) / count
                _put(
                    shares.setdefault(other, {}),
                    name,
                    found[other],
                    share,
                    int(found[other].indices.max()) + 1,
                    fold > 0,
                )
    return CrossFit(copy_of, scores, shares, predictions if (predictions >= 0).any() else None, missing)


def _specs(config: Config) -> list[str | Mapping[str, Any]] | None:
    """Returns the detectors that folds are fitted for, None if there is nothing to fit.

    One of those that leave out single neighbours comes along, because it can be fitted wherever the run's own can.
    """
    given = read_specs(config.detectors)
    exact = [load_class(spec).leaves_one_out for spec in given]
    if all(exact) and not config.method.settings.trains:
        return None
    first = exact.index(True) if any(exact) else None
    kept = [spec for number, spec in enumerate(given) if not exact[number] or number == first]
    return [spec.as_asked() for spec in kept]


def _dealt(config: Config, benchmark: Benchmark, features: dict[str, Features], leaks: Leaks) -> np.ndarray:
    """Returns the fold of each image of the training images' set (N,), −1 for those that are no readable training image."""
    train = benchmark.parts["train"]
    readable, rows = features[train.images].valid.numpy(), np.sort(np.asarray(train.rows, int))
    rows = rows[readable[rows]]
    groups = first_copies(leaks.copies, train.key, rows)
    labels = np.asarray(benchmark.labels(replace(train, rows=rows.tolist())))
    count = min(config.evaluation.cross_fit, len(np.unique(groups)))
    dealt = np.full(len(readable), -1)
    dealt[rows] = folds(groups, labels, count, config.seed)
    return dealt


def _fold(benchmark: Benchmark, dealt: np.ndarray, fold: int, sets: Sequence[str]) -> Benchmark:
    """Returns the benchmark that learns from all other folds, and whose ID test images are this fold."""
    train, bank = benchmark.parts["train"], benchmark.parts["bank"]

    def rows(part: Part, inside: bool) -> list[int]:
        own = np.asarray(part.rows, int)
        return own[(dealt[own] >= 0) & ((dealt[own] == fold) == inside)].tolist()

    parts = {
        "bank": replace(bank, rows=rows(bank, False)),
        TESTED: Part(TESTED, "id", "", train.images, rows(train, True)),
        "train": replace(train, rows=rows(train, False)),
        "val": benchmark.parts["val"],
    }
    parts |= {part.key: part for part in benchmark.parts.values() if part.name in sets and part.role in ("csid", "ood")}
    return replace(benchmark, parts=parts, scores_train=False)


def _put(found: dict[str, Tensor], name: str, of: Scores, values: Tensor, total: int, adds: bool = False) -> None:
    """Enters values at the rows of a set; they are added to what is there, or replace it."""
    if name not in found:
        found[name] = torch.full((total,), torch.nan, dtype=values.dtype)
    found[name][of.indices] = found[name][of.indices] + values if adds else values
