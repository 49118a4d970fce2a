"""Chooses the negative labels of an experiment, the same in every process."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer

from clip_ood.config.schema import Config
from clip_ood.data.benchmark import Benchmark
from clip_ood.detectors.build import required
from clip_ood.features.rows import Rows
from clip_ood.outputs import NegativeLabels
from clip_ood.terminal.console import Terminal
from clip_ood.texts.negative_words import POOLS, Pool, are_classes, negative_labels, select
from clip_ood.texts.prompts import Phrases
from clip_ood.texts.wordnet import read_words


def pools(config: Config, benchmark: Benchmark) -> dict[str, Pool]:
    """Returns what each detector that needs negative labels chooses them from, by its name; none without negative words."""
    asked = [name for name in POOLS if name in required(config.detectors)]
    if config.data.negative_words is None or not asked:
        return {}
    words = read_words(config.data.negative_words).draw(config.data.max_negative_words)
    return {name: POOLS[name](words, benchmark.class_names) for name in asked}


def word_sets(chosen_from: dict[str, Pool]) -> dict[str, Phrases]:
    """Returns everything that the text encoder must encode for the choice, by names of its own: "csp classes", …"""
    return {
        f"{name} {part}": getattr(pool, part)
        for name, pool in chosen_from.items()
        for part in ("classes", "nouns", "adjectives")
        if getattr(pool, part).words
    }


def choose(chosen_from: dict[str, Pool], embeddings: dict[str, Rows], trainer: Trainer) -> dict[str, NegativeLabels]:
    """Returns the negative labels by detector, from the embeddings of `word_sets`; the first process chooses for all."""
    return {name: _choose(name, pool, embeddings, trainer) for name, pool in chosen_from.items()}


def _choose(name: str, pool: Pool, embeddings: dict[str, Rows], trainer: Trainer) -> NegativeLabels:
    classes = torch.cat(list(embeddings[f"{name} classes"].blocks()))
    parts = [part for part in ("nouns", "adjectives") if f"{name} {part}" in embeddings]
    candidates = [embeddings[f"{name} {part}"] for part in parts]
    chosen = None
    if trainer.is_global_zero:
        on_device = classes.to(trainer.strategy.root_device)
        dropped = [are_classes(getattr(pool, part).words, pool.classes.words) for part in parts]
        with Terminal().status(f"Choosing the negative labels of {name}"):
            chosen = [
                select(rows.blocks(), on_device, without, pool.same)
                for rows, without in zip(candidates, dropped, strict=True)
            ]
    chosen = trainer.strategy.broadcast(chosen)
    return negative_labels(classes, [rows.take(places) for rows, places in zip(candidates, chosen, strict=True)])
