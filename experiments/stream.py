"""Scores the stored test images of a run as streams, by the test-time methods of evaluation.stream."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from lightning.pytorch import LightningModule
from rich.progress import track
from torch import Tensor

from clip_ood.backbones.library import library
from clip_ood.config.schema import Config
from clip_ood.data.benchmark import Benchmark
from clip_ood.data.labelled import FeatureTable
from clip_ood.datamodules.evaluation_data import EvaluationData
from clip_ood.detectors.names import Spec
from clip_ood.errors import ConfigError
from clip_ood.stream.build import check_has, check_values, make, method_class, required_by
from clip_ood.stream.evaluation import Plan, StreamResults, evaluate
from clip_ood.stream.names import read_methods
from clip_ood.terminal.console import Terminal

KEY = "evaluation.stream"


def stream_fields(config: Config) -> set[str]:
    """Returns the fields of a Reference that the test-time methods of a config need."""
    return set() if config.evaluation.stream is None else required_by(config.evaluation.stream.methods)


def check_stream(config: Config, benchmark: Benchmark) -> None:
    """Raises UserError, before images are read, for a stream that the method, encoder or images of a config cannot serve."""
    stream = config.evaluation.stream
    if stream is None:
        return
    if config.method.settings.tunes_encoder:
        raise ConfigError(f"{KEY} scores stored embeddings, and fine-tuning stores none: leave it out")
    parts = benchmark.parts.values()
    if not any(part.rows for part in parts if part.role == "id"):
        raise ConfigError(f"{KEY} needs ID test images: raise data.splits.test, or name data.id.test")
    if not any(part.role == "ood" for part in parts):
        raise ConfigError(f"{KEY} mixes OOD images among ID test images: name OOD sets (data.ood)")
    lacking = set() if config.data.negative_words is not None else {"neglabel", "eoe"}
    lacking |= set() if benchmark.labelled else {"class_images"}
    if benchmark.class_names is None or not config.backbone.reads_text:
        lacking |= {"text_embeddings", "logit_scale", "neglabel", "eoe", "text_tower"}
    for spec in read_methods(stream.methods):
        check_has(spec, lacking, f"{KEY}.methods")
        check_values(spec)
        _check_texts(spec, config)


def _check_texts(spec: Spec, config: Config) -> None:
    """Raises UserError for a method that learns texts, with an encoder whose text tower takes no embeddings of tokens."""
    encoder = config.backbone.text_spec or config.backbone
    if "text_tower" in method_class(spec).requires and not library(encoder.library).takes_tokens:
        raise ConfigError(
            f"{KEY}.methods: {spec.name} needs a text tower that takes embeddings of tokens, and {encoder.library}'s {encoder.model} has "
            "none: use an encoder of open_clip, or leave it out"
        )


def scored_as_stream(
    config: Config, data: EvaluationData, module: LightningModule, device: torch.device
) -> StreamResults | None:
    """Returns what test-time methods score on the stored embeddings of the test sets; None if none are asked for.

    The first process calls it alone, after the test: a stream has one order, in which the images of all processes stand.
    """
    stream = config.evaluation.stream
    if stream is None:
        return None
    seeds = tuple(config.seed + number for number in range(stream.orders))
    plan = Plan(seeds, stream.batch_size, stream.ood_share)
    reference = module.reference()
    if (made := reference.text_tower) is not None:  # reads texts on the device; all else is float64 on the CPU
        reference = replace(reference, text_tower=lambda: made().to(device))
    specs = read_methods(stream.methods)
    inside = next(table for table in data.evaluated if table.part.role == "id")
    outside = {table.part.name: partial(_embeddings, table) for table in data.evaluated if table.part.role == "ood"}
    rows = evaluate(
        {spec.label: partial(make, spec, reference) for spec in specs}, _embeddings(inside), outside, plan, _watch
    )
    return StreamResults(plan, {spec.label: {"name": spec.name, **spec.parameters} for spec in specs}, rows)


def _embeddings(table: FeatureTable) -> Tensor:
    return table.stored.embeddings.take(table.rows).float()


def _watch(seeds: tuple[int, ...]):
    return track(seeds, "Streams", console=Terminal(), transient=True)
