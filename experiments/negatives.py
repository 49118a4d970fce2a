"""Chooses the negative labels of an experiment, the same in every process."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from clip_ood.backbones.backbone import unit
from clip_ood.config.data_schema import Data
from clip_ood.config.schema import Config
from clip_ood.data.benchmark import Benchmark
from clip_ood.data.labelled import FeatureTable
from clip_ood.detectors.build import required
from clip_ood.detectors.class_sums import ClassSums
from clip_ood.detectors.detector import ROWS
from clip_ood.errors import ConfigError, UserError
from clip_ood.experiments.stream import stream_fields
from clip_ood.features.rows import Rows
from clip_ood.features.stored_set import Features
from clip_ood.files.checksum import hexdigest
from clip_ood.files.writing import written_text
from clip_ood.files.written_names import text_cell
from clip_ood.outputs import NegativeLabels
from clip_ood.terminal.console import Terminal
from clip_ood.texts.negative_words import FROM_IMAGES, GIVEN, POOLS, Pool, are_classes, negative_labels, select
from clip_ood.texts.prompts import Phrases
from clip_ood.texts.wordnet import read_words

SHOWN = 5  # class names among the words that are told
WORDS = "negative_words.csv"  # of a run: the negative labels that were chosen


def pools(config: Config, benchmark: Benchmark) -> dict[str, Pool]:
    """Returns what each detector that needs negative labels chooses them from, by its name; none without negative words."""
    asked = [name for name in POOLS if name in required(config.detectors) | stream_fields(config)]
    if config.data.negative_words is None or not asked:
        return {}
    if config.data.negative_choice == FROM_IMAGES:
        if config.method.settings.tunes_encoder:
            raise ConfigError(
                f"data.negative_choice: {FROM_IMAGES} needs stored embeddings of training images, and fine-tuning stores none: take another "
                "choice"
            )
        if not benchmark.labelled:
            raise ConfigError(
                f"data.negative_choice: {FROM_IMAGES} needs class labels of ID training images: take another choice"
            )
    return {name: _pool(name, config.data, benchmark.class_names) for name in asked}


def _pool(name: str, data: Data, class_names: Sequence[str]) -> Pool:
    words = read_words(data.negative_words, data.csp_without if name == "csp" else ()).draw(data.max_negative_words)
    keeps_classes = data.negative_classes == "kept"
    if not keeps_classes and are_classes((*words.nouns, *words.adjectives), class_names).all():
        raise UserError(
            f"data.negative_words: all words of {data.negative_words} name ID classes, so that none is left for {name}: name others, or "
            "keep them (data.negative_classes=kept)"
        )
    pool = replace(POOLS[name](words, class_names), keeps_classes=keeps_classes, choice=data.negative_choice)
    averages = max(len(phrases.prompts) for phrases in (pool.classes, pool.nouns, pool.adjectives)) > 1
    return pool.raw() if averages and data.negative_averages == "raw" else pool


def word_sets(chosen_from: dict[str, Pool]) -> dict[str, Phrases]:
    """Returns everything that the text encoder must encode for the choice, by names of its own: "csp classes", …"""
    return {
        f"{name} {part}": getattr(pool, part)
        for name, pool in chosen_from.items()
        for part in ("classes", "nouns", "adjectives")
        if getattr(pool, part).words
    }


def choose(
    chosen_from: dict[str, Pool],
    embeddings: dict[str, Rows],
    trainer: Trainer,
    benchmark: Benchmark,
    features: dict[str, Features],
) -> dict[str, NegativeLabels]:
    """Returns the negative labels by detector, from the embeddings of `word_sets`; the first process chooses for all.

    The stored `features` of the benchmark's training images are read only for a choice by images.
    """
    images = None
    if trainer.is_global_zero and any(pool.choice == FROM_IMAGES for pool in chosen_from.values()):
        images = class_images(benchmark, features)
    return {name: _choose(name, pool, embeddings, images, trainer) for name, pool in chosen_from.items()}


def class_images(benchmark: Benchmark, features: dict[str, Features]) -> Tensor:
    """Returns the mean unit-norm embedding of each class's readable ID training images (C, E), zero for a class without any."""
    part = benchmark.parts["train"]
    table = FeatureTable(part, features[part.images], benchmark.labels(part))
    sums = ClassSums(lambda rows: unit(rows.embeddings.double()), lambda rows: rows.labels)
    for positions in torch.arange(len(table)).split(ROWS):
        sums.update(table[positions])
    means = sums.means()
    return torch.cat([means, means.new_zeros(len(benchmark.class_names) - len(means), means.shape[1])])


def _choose(
    name: str, pool: Pool, embeddings: dict[str, Rows], images: Tensor | None, trainer: Trainer
) -> NegativeLabels:
    classes = torch.cat(list(embeddings[f"{name} classes"].blocks()))
    parts = [part for part in ("nouns", "adjectives") if f"{name} {part}" in embeddings]
    candidates = [embeddings[f"{name} {part}"] for part in parts]
    chosen = None
    if trainer.is_global_zero:
        names = () if pool.keeps_classes else pool.classes.words
        on_device = classes.to(trainer.strategy.root_device)
        dropped = [are_classes(getattr(pool, part).words, names) for part in parts]
        if pool.choice == GIVEN:
            _tell_dropped(name, [getattr(pool, part).words for part in parts], dropped)
        with Terminal().status(f"Choosing the negative labels of {name}"):
            chosen = [
                select(rows.blocks(), on_device, without, pool.same, pool.choice, images)
                for rows, without in zip(candidates, dropped, strict=True)
            ]
    chosen = trainer.strategy.broadcast(chosen)
    words = [
        getattr(pool, part).words[place]
        for part, places in zip(parts, chosen, strict=True)
        for place in places.tolist()
    ]
    return negative_labels(classes, [rows.take(places) for rows, places in zip(candidates, chosen, strict=True)], words)


def _tell_dropped(name: str, words: Sequence[Sequence[str]], dropped: Sequence[Tensor]) -> None:
    """Says which words of a list that is used as it is are left out, as they name ID classes."""
    left_out = [part[place] for part, flags in zip(words, dropped, strict=True) for place in flags.nonzero().flatten()]
    if left_out:
        shown = ", ".join(left_out[:SHOWN]) + (", …" if len(left_out) > SHOWN else "")
        Terminal().print(
            f"{name}: {len(left_out)} of data.negative_words name ID classes and are left out: {shown}. To keep them: "
            "data.negative_classes=kept"
        )


def write_words(folder: Path, negatives: dict[str, NegativeLabels]) -> dict[str, Any] | None:
    """Writes the chosen words to negative_words.csv: nouns before adjectives, each in the order of `select`.

    Returns the file's name, its SHA-256 and the number of words by detector. Without negative labels it returns None and
    removes the file.
    """
    path = folder / WORDS
    path.unlink(missing_ok=True)
    if not negatives:
        return None
    with written_text(path) as file:
        lines = csv.writer(file)
        lines.writerow(["detector", "word"])
        lines.writerows([name, text_cell(word)] for name, labels in negatives.items() for word in labels.words)
    counts = {name: len(labels.words) for name, labels in negatives.items()}
    return {"file": WORDS, "sha256": hexdigest(path, "sha256"), "words": counts}
