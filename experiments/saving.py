"""Saves what a run fitted as a detector's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from clip_ood.backbones.fingerprint import fingerprint
from clip_ood.backbones.spec import EncoderSpec
from clip_ood.callbacks.detector_writer import DetectorWriter
from clip_ood.callbacks.ood_evaluation import OODEvaluation
from clip_ood.config.given import GIVEN
from clip_ood.config.schema import Config
from clip_ood.cross_fit import CrossFit
from clip_ood.data.benchmark import Benchmark
from clip_ood.detect.bank_images import BankImages
from clip_ood.detect.manifest import FOLDER
from clip_ood.detect.save import described
from clip_ood.detect.saved_encoder import Encoder
from clip_ood.detectors.build import required
from clip_ood.experiments.stream import stream_fields
from clip_ood.features.store import dtype_of
from clip_ood.features.stored_set import Features
from clip_ood.texts.vocabulary import Vocabulary


def detector_writer(
    config: Config,
    folder: Path,
    evaluation: OODEvaluation,
    images: BankImages | None,
    vocabulary: Vocabulary | None,
    features: Mapping[str, Features],
) -> DetectorWriter:
    """Makes the callback that writes detector/ after the test, with the images of the bank and the words by which images are named."""
    spec = described(config.backbone)
    stored = str(dtype_of(config.backbone.precision)).removeprefix("torch.")
    encoder = Encoder(spec, fingerprint(config.backbone, config.features_root / "hashes.json"), stored)
    about = {"run": folder.name, "method": config.method.name, "batch_size": config.data.batch_size}
    about["texts"] = _texts(config)
    if config.backbone.library == GIVEN:
        about["width"] = next(iter(features.values())).features.width
    accept, tuned = config.evaluation.accept, config.method.settings.tunes_encoder
    writer = DetectorWriter(
        folder / FOLDER, evaluation, encoder, spec, about, accept, tuned, config.evaluation.with_encoder
    )
    writer.images, writer.vocabulary = images, vocabulary
    return writer


def _texts(config: Config) -> dict[str, Any] | None:
    """Returns what the manifest says of the encoder of texts, if a detector or test-time method asks it while it scores."""
    asked = required(config.detectors) | stream_fields(config)
    if "text_tower" not in asked or not config.backbone.reads_text:
        return None
    encoder = config.backbone.text_spec or config.backbone
    known = fingerprint(encoder, config.features_root / "hashes.json")
    return {"spec": asdict(described(encoder, EncoderSpec)), "fingerprint": known}


def bank_images(
    benchmark: Benchmark, features: Mapping[str, Features], cross_fit: CrossFit | None
) -> BankImages | None:
    """Returns the images of the bank and, with cross-fitting, their copies; None if their contents are not known."""
    bank = benchmark.parts["bank"]
    images, stored = benchmark.images[bank.images], features[bank.images]
    if stored.identities is None:
        return None
    copy_of = np.full(len(stored.identities), -1)
    copy_of[bank.rows] = bank.rows
    if cross_fit is not None:
        copy_of = cross_fit.copy_of.numpy()
    rows = np.flatnonzero((copy_of >= 0) & stored.valid.numpy())
    return BankImages([images.names[row] for row in rows], stored.identities[rows], rows, copy_of[rows])
