"""Writes what an evaluation fitted as a detector's folder, beside the results."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from clip_ood.backbones.spec import BackboneSpec
from clip_ood.callbacks.ood_evaluation import TRAIN, OODEvaluation
from clip_ood.detect.bank_images import BankImages
from clip_ood.detect.save import add_encoder, save_bank, save_detector
from clip_ood.detect.saved import SavedDetector
from clip_ood.detect.saved_encoder import Encoder
from clip_ood.detect.vocabulary_file import write_vocabulary
from clip_ood.texts.vocabulary import Vocabulary

MIXED = {"bf16-mixed": "bfloat16", "16-mixed": "float16"}  # precision of the Trainer -> that of the encoder


class DetectorWriter(Callback):
    """After the test, writes to `folder` what `evaluation` fitted; each process writes its part of the bank.

    `encoder` gives the features. If the run is `tuned`, the module has changed the encoder (its `backbone`), and its weights are
    always written; other weights are written if `with_encoder`.
    `about`: further entries of the manifest. Detectors are calibrated as the evaluation says. `images`, which may be set later, are those
    of the bank and their copies, and `vocabulary` has the words by which images are named.
    """

    images: BankImages | None = None
    vocabulary: Vocabulary | None = None

    def __init__(
        self,
        folder: Path,
        evaluation: OODEvaluation,
        encoder: Encoder,
        spec: BackboneSpec,
        about: dict[str, Any],
        accept: float,
        tuned: bool,
        with_encoder: bool,
    ) -> None:
        self.folder, self.evaluation, self.encoder, self.spec = folder, evaluation, encoder, spec
        self.about, self.accept, self.tuned, self.with_encoder = about, accept, tuned, with_encoder

    def on_test_end(self, trainer: Trainer, module: LightningModule) -> None:
        suite = self.evaluation.suite
        if trainer.is_global_zero:
            shutil.rmtree(self.folder, ignore_errors=True)
        trainer.strategy.barrier("old detector gone")
        save_bank(self.folder, suite.detectors, trainer.global_rank)
        trainer.strategy.barrier("bank written")
        if not trainer.is_global_zero:
            return
        encoder = self.encoder
        if self.tuned:
            autocast = MIXED.get(trainer.precision)
            encoder = replace(encoder, features="float32", autocast=autocast)
        if self.images is not None:
            self._images().write(self.folder)
        if self.vocabulary is not None:
            write_vocabulary(self.folder, self.vocabulary)
        save_detector(
            self.folder,
            encoder,
            suite.reference,
            suite.detectors,
            suite.omitted,
            self.evaluation.results.calibrations,
            self.about,
            self.accept,
            (module.backbone, self.spec) if self.tuned else None,
            self.evaluation.results.predictor,
            self.evaluation.bank_labels,
        )
        if self.with_encoder:
            add_encoder(
                SavedDetector(self.folder, trust_classes=True), allow_download=True
            )  # the run's own config allows both

    def _images(self) -> BankImages:
        """Returns the images with the scores that training images were given, if they were scored. Those outside the bank are no copies of it."""
        results = self.evaluation.results
        if (scored := results.of_role(TRAIN)) is None:
            return self.images
        among = np.isin(scored.indices.numpy(), self.images.rows)
        places = np.searchsorted(self.images.rows, scored.indices.numpy()[among])
        scores = {name: np.full(len(self.images), np.nan, np.float32) for name in scored.scores}
        for name, values in scored.scores.items():
            scores[name][places] = values.numpy()[among]
        return replace(self.images, scores=scores)
