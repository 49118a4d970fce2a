"""Asks which detector is best where there are no OOD images: some classes play them, and the others are all that is fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np

from clip_ood.config.schema import Config
from clip_ood.cross_fit import FEWEST_CLASSES, folds, groups_of_classes
from clip_ood.data.benchmark import Benchmark, Part
from clip_ood.experiments.leaks import Leaks
from clip_ood.experiments.refit import refit
from clip_ood.features.store import TextEmbeddings
from clip_ood.features.stored_set import Features
from clip_ood.folder.copy_groups import first_copies
from clip_ood.terminal.shown import say

TESTED = 5  # one of so many ID images is tested
NAME = "held out"


def hold_out_classes(
    config: Config,
    benchmark: Benchmark,
    features: dict[str, Features],
    text: TextEmbeddings | None,
    leaks: Leaks,
    quiet: bool,
) -> dict[str, Any] | None:
    """Returns what results.json says of each group of classes that was held out, each class once; all processes call this together.

    It has `groups`, with their classes, numbers of images and AUROCs by detector, and `mean`, the mean of these over the groups for the
    detectors that served all. None, which is said, without four classes that have training images.
    """
    count, labels = config.evaluation.hold_out_classes, np.asarray(benchmark.labels(benchmark.parts["train"]))
    classes = np.unique(labels[labels >= 0])
    if len(classes) < FEWEST_CLASSES or benchmark.class_names is None:
        if not quiet:
            say(
                f"No classes are held out (evaluation.hold_out_classes): it takes {FEWEST_CLASSES} or more, and there are {len(classes)}"
            )
        return None
    shuffled = np.random.default_rng(config.seed).permutation(classes)
    found = []
    for number, gone in enumerate(groups := np.array_split(shuffled, groups_of_classes(count, len(classes)))):
        if not quiet:
            say(f"Holding out classes: group {number + 1} of {len(groups)}", flush=True)
        kept = np.setdiff1d(np.arange(len(benchmark.class_names)), gone)
        without = _without(benchmark, features, leaks, kept, gone, config.seed)
        evaluation = refit(
            config, without, features, _texts_of(text, benchmark, kept, len(config.data.prompts)), config.detectors
        )
        if evaluation.results is not None:  # of the first process
            found.append(_told([benchmark.class_names[label] for label in sorted(gone)], evaluation.results.rows))
    return {"groups": found, "mean": _means([each["auroc"] for each in found])} if found else None


def _told(classes: Sequence[str], rows: Sequence[Any]) -> dict[str, Any]:
    of_set = [row for row in rows if row.ood == NAME]
    return {
        "classes": list(classes),
        "n_id": of_set[0].n_id,
        "n_ood": of_set[0].n_ood,
        "auroc": {row.detector: row.metrics["auroc"].value for row in of_set},
    }


def _means(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the mean of each detector that all of them have, the highest first."""
    common = [name for name in found[0] if all(name in each for each in found)]
    means = {name: fmean(each[name] for each in found) for name in common}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def _without(
    benchmark: Benchmark,
    features: Mapping[str, Features],
    leaks: Leaks,
    kept: np.ndarray,
    gone: np.ndarray,
    seed: int,
) -> Benchmark:
    """Returns a benchmark of the classes that are `kept`, whose OOD set are the training images of those that are `gone`.

    One of five images of the other classes is tested, with its copies, and the rest is learnt from.
    """
    train = benchmark.parts["train"]
    rows = np.sort(np.asarray(train.rows, int))
    rows = rows[features[train.images].valid.numpy()[rows]]
    labels = np.asarray(benchmark.images[train.images].labels)
    is_inside = np.isin(labels[rows], kept)
    inside, groups = rows[is_inside], first_copies(leaks.copies, train.key, rows)[is_inside]
    is_tested = folds(groups, labels[inside], TESTED, seed) == 0
    bank = np.intersect1d(inside[~is_tested], benchmark.parts["bank"].rows)
    number = np.full(len(benchmark.class_names) + 1, -1)  # the last stands for no class
    number[kept] = np.arange(len(kept))
    names = tuple(benchmark.class_names[label] for label in kept)
    images = {
        key: each
        if each.labels is None or not key.startswith("id")
        else replace(each, labels=tuple(number[list(each.labels)].tolist()), class_names=names)
        for key, each in benchmark.images.items()
    }
    val = benchmark.parts["val"]
    of_val = benchmark.images[val.images].labels
    parts = [
        replace(benchmark.parts["bank"], rows=bank.tolist()),
        Part("id_test", "id", "", train.images, inside[is_tested].tolist()),
        Part(NAME, "ood", "", train.images, rows[np.isin(labels[rows], gone)].tolist()),
        replace(train, rows=inside[~is_tested].tolist()),
        replace(val, rows=[row for row in val.rows if of_val is None or of_val[row] in kept]),
    ]
    called = None if benchmark.called is None else tuple(benchmark.called[label] for label in kept)
    return Benchmark(images, {part.key: part for part in parts}, names, called)


def _texts_of(
    text: TextEmbeddings | None, benchmark: Benchmark, kept: np.ndarray, prompts: int
) -> TextEmbeddings | None:
    """Returns the embeddings of the classes that are kept; negative words stay those of all classes."""
    if text is None:
        return None
    counts = np.array([prompts * len(names) for names in benchmark.called])
    of_class = np.repeat(np.arange(len(counts)), counts)
    negatives = {name: replace(each, classes=each.classes[kept]) for name, each in text.negatives.items()}
    return replace(text, embeddings=text.embeddings[np.isin(of_class, kept)], negatives=negatives)
