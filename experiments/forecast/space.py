"""Computes how large a run's checkpoints and detector folder become, by the shapes of their content, and whether disks have room."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.filesize import decimal

from clip_ood.backbones.shape import Shape
from clip_ood.config.schema import Config
from clip_ood.data.benchmark import Benchmark
from clip_ood.detect.save import searched
from clip_ood.detectors.bank import Bank
from clip_ood.detectors.build import build_detectors
from clip_ood.detectors.names import read_specs
from clip_ood.detectors.statistic import statistics_of
from clip_ood.errors import ConfigError
from clip_ood.outputs import Reference

FLOAT, DOUBLE = 4, 8  # bytes
ROW = 200  # bytes of a row of scores: the image's path, its set and classes


@dataclass(frozen=True)
class Writing:
    """Bytes that are written into a folder; None if their number is not known yet."""

    folder: Path
    what: str
    size: int | None


def checkpoint_size(config: Config, shape: Shape, classes: int, averaged: bool) -> int:
    """Returns the bytes of a run's checkpoint: weights, Adam's two moments of each trained weight, and the texts of the classes.

    `averaged`: whether fine-tuning keeps its averaged weights beside the others.
    """
    settings, head = config.method.settings, classes * (shape.features + 1)
    texts = classes * (shape.embeddings or 0) if config.backbone.reads_text else 0
    if settings.tunes_encoder:
        values = (1 + averaged) * (shape.values + head) + 2 * (shape.parameters + head)
    elif not settings.trains_head:  # learnt prompts; token embeddings are nearly as long as those of texts
        negatives = getattr(settings, "negatives", 0)
        contexts = (classes if settings.class_specific else 1) * max(negatives, 1) * settings.context
        values = (1 + negatives) * texts + 2 * contexts * shape.embeddings
    else:
        heads = len(settings.candidates()) if getattr(settings, "sweep", None) else 0
        values = 2 * shape.features + head + (3 * heads if heads else 2) * head
    return FLOAT * (values + texts)


def detector_size(config: Config, shape: Shape, benchmark: Benchmark, item: int) -> int:
    """Returns the largest possible size of a run's detector folder in bytes.

    It has the bank if a detector searches it, the encoder if it lies there, and for each detector that learns as much as one
    needs for D × D and C × D numbers. `item`: bytes of a stored feature.
    """
    names = benchmark.class_names
    classes, tuned = len(names or ()), config.method.settings.tunes_encoder
    trained = config.method.settings.trains_head
    available = {"features"} | ({"labels"} if benchmark.labelled else set()) | ({"class_names"} if names else set())
    reference = Reference(class_names=names)
    if shape.embeddings is not None:
        available.add("embeddings")
        if names:
            available |= {"text_embeddings", "logit_scale"}
            reference = Reference(names, torch.zeros(classes, shape.embeddings), 1.0)
    if trained:
        available |= {"logits", "weight", "bias"}
        head = {"weight": torch.zeros(classes, shape.features), "bias": torch.zeros(classes)}
        reference = Reference(names, reference.text_embeddings, reference.logit_scale, **head)
    cached = cached_images(config, benchmark)
    available |= {"logits"} if cached else set()
    detectors, _ = build_detectors(config.detectors, reference, available)
    portable = [each for each in detectors.values() if each.portable]
    learnt = [each for each in portable if any(not isinstance(kept, Bank) for kept in statistics_of(each).values())]
    size = len(learnt) * DOUBLE * shape.features * (shape.features + classes)
    size += FLOAT * classes * (shape.features + (shape.embeddings or 0))
    size += cached * (FLOAT * (shape.embeddings or 0) + DOUBLE)
    if any(map(searched, portable)):
        size += len(benchmark.parts["bank"].rows) * (shape.features * (FLOAT if tuned else item) + DOUBLE)
    if tuned or config.evaluation.with_encoder:
        size += shape.values * (FLOAT if tuned or config.backbone.precision == "fp32" else 2)
    return size


def cached_images(config: Config, benchmark: Benchmark) -> int:
    """Returns the largest possible number of training images in Tip-Adapter's cache, 0 for other methods."""
    settings = config.method.settings
    if settings.trains_head or not settings.gives_logits:
        return 0
    train = len(benchmark.parts["train"].rows)
    return train if settings.per_class is None else min(train, settings.per_class * len(benchmark.class_names or ()))


def scores_size(config: Config, benchmark: Benchmark, more: int) -> int:
    """Bytes of a run's scores.parquet, at most, of the images of its benchmark and so many more."""
    images = sum(len(part.rows) for part in benchmark.reported.values()) + more
    return images * (ROW + DOUBLE * len(read_specs(config.detectors)))


def free_at(folder: Path) -> tuple[int, int]:
    """Returns the disk that a folder lies on, or would lie on, and the bytes that are free there."""
    place = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    return os.stat(place).st_dev, shutil.disk_usage(place).free


def check_room(writings: Iterable[Writing]) -> list[ConfigError]:
    """Returns an error for each disk that has no room for everything that is written to its folders together."""
    of_disk: dict[int, list[Writing]] = {}
    free: dict[int, int] = {}
    for each in writings:
        disk, free_there = free_at(each.folder)
        free[disk] = free_there
        of_disk.setdefault(disk, []).append(each)
    errors = []
    for disk, there in of_disk.items():
        total = sum(each.size or 0 for each in there)
        if total > free[disk]:
            folders = ", ".join(dict.fromkeys(str(each.folder) for each in there if each.size))
            errors.append(
                ConfigError(
                    f"The disk of {folders} has room for {decimal(free[disk])}, and {decimal(total)} would come there: free some room, or "
                    "name folders elsewhere (features_root, runs_root)"
                )
            )
    return errors
