"""Exports the features of a run's images, beside their scores and groups, for other programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from clip_ood.backbones.fingerprint import fingerprint
from clip_ood.backbones.library import library
from clip_ood.config.given import GIVEN
from clip_ood.config.schema import Config
from clip_ood.data.benchmark import Benchmark, Part
from clip_ood.detect.save import described
from clip_ood.detectors.names import ABOUT
from clip_ood.errors import UserError
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.experiments.extraction import stored_sets, using_features
from clip_ood.experiments.kept_decisions import as_kept, kept_in
from clip_ood.experiments.resume import begun_with, check_contents, check_images, contents_of
from clip_ood.features.identity import hexadecimal
from clip_ood.features.store import FeatureStore
from clip_ood.features.stored_set import Features
from clip_ood.files.written_names import paths_of
from clip_ood.folder.embeddings import EmbeddedSet, write_embeddings
from clip_ood.folder.files import read_suspects
from clip_ood.runs.run_folder import SCORES, SUSPECTS, read_results, read_scores, seed_folder


def export_embeddings(run: Path, path: Path) -> int:
    """Writes the images of a finished run to a Parquet file, and returns their number.

    Images that the run did not score have no score. Features come from the store that the run has used; the encoder's weights are
    not loaded. Raises: UserError for a run whose images or features are not there any more, or whose encoder was fine-tuned.
    """
    read_results(run)
    config = begun_with(run)
    if config.seeds:
        raise UserError(f"{run} is a run over several seeds: name one of them, as {seed_folder(run, config.seeds[0])}")
    if config.method.settings.tunes_encoder:
        raise UserError(
            f"{run} has tuned its encoder, and the store holds features of the encoder as it was: name another run"
        )
    if config.backbone.library == GIVEN:
        raise UserError(f"{run} was given its features, which lie in your files, and {run / SCORES} has the scores")
    benchmark = load_benchmark(as_kept(config, kept_in(run)))
    check_images(run, benchmark)
    with using_features(config):
        encoder = fingerprint(config.backbone, config.features_root / "hashes.json")
        features = _stored(config, benchmark, FeatureStore(config.features_root, encoder))
        check_contents(run, contents_of(config, benchmark, features))
        scores = read_scores(run)
        detectors = [name for name in scores.column_names if name not in ABOUT]
        parts = [benchmark.parts["train"]]
        parts += [part for part in benchmark.parts.values() if part.role not in ("bank", "train")]
        sets = (_set(run, benchmark, part, features[part.images], scores, detectors) for part in parts)
        width = features[parts[0].images].features.width
        about = {**asdict(described(config.backbone)), "fingerprint": encoder}
        return write_embeddings(path, sets, detectors, width, about, _preprocessing(config))


def _stored(config: Config, benchmark: Benchmark, store: FeatureStore) -> Mapping[str, Features]:
    try:
        return {key: each.open() for key, each in stored_sets(config, store, benchmark.images).items()}
    except FileNotFoundError as error:
        raise UserError(f"{error}: the run's command encodes them again") from error


def _set(
    run: Path, benchmark: Benchmark, part: Part, stored: Features, scores: pa.Table, detectors: list[str]
) -> EmbeddedSet:
    """Returns the readable images of a part, with what the run has found out about them."""
    rows = [row for row in part.rows if stored.valid[row]]
    images = benchmark.images[part.images]
    paths = [images.names[row] for row in rows]
    place = {path: number for number, path in enumerate(paths)}
    scored = scores.filter(pc.equal(scores["set"], part.name))
    at = np.array([place[path] for path in paths_of(scored)], int)
    values = {name: np.full(len(rows), np.nan) for name in detectors}
    for name in detectors:
        values[name][at] = scored[name].to_numpy()
    score, group, points = np.full(len(rows), np.nan), np.zeros(len(rows), int), np.full((len(rows), 2), np.nan)
    if part.role == "train" and (run / SUSPECTS).is_file():
        for each in read_suspects(run / SUSPECTS):
            number = place[each.path]
            score[number] = np.nan if each.score is None else each.score
            points[number] = np.nan if each.x is None else (each.x, each.y)
            group[number] = each.group or 0
    labels = dict(zip(part.rows, benchmark.labels(part), strict=True))
    return EmbeddedSet(
        part.name,
        part.role,
        paths,
        [None] * len(rows) if stored.identities is None else [hexadecimal(stored.identities[row]) for row in rows],
        [_named(labels[row], benchmark.class_names) for row in rows],
        stored.features.subset(torch.tensor(rows, dtype=torch.int64)),
        score,
        group,
        points,
        values,
    )


def _named(label: int, names: tuple[str, ...] | None) -> str | None:
    return None if label < 0 else names[label] if names else str(label)


def _preprocessing(config: Config) -> dict[str, Any]:
    """Returns the size, mean, std and interpolation of the encoder's transform, without its weights."""
    with torch.device("meta"):
        return asdict(library(config.backbone.library).image_side(described(config.backbone)).preprocessing)
