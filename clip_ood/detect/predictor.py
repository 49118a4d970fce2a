"""Judges whether images are OOD: the detectors of a finished run, with their thresholds, as a function of images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from io import IOBase
from itertools import islice, product
from math import isnan
from numbers import Integral
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from clip_ood.backbones.backbone import Backbone
from clip_ood.backbones.given_library import GivenFeatures
from clip_ood.class_predictions import HEAD, KNN, predict, voted
from clip_ood.detect.columns import judge_columns
from clip_ood.detect.decisions import cutoffs, decisions_of
from clip_ood.detect.given import judge_features
from clip_ood.detect.heat_map import HeatMap, heat_map
from clip_ood.detect.manifest import DetectorFolderError
from clip_ood.detect.one_image import OneImage, name_of, picture_of, pictures_of
from clip_ood.detect.prediction import BatchPredictions, NearWord, Neighbour, Prediction
from clip_ood.detect.saved import SavedDetector
from clip_ood.detectors.bank import Bank
from clip_ood.detectors.detector import Detector, score_together
from clip_ood.detectors.statistic import statistics_of
from clip_ood.errors import UserError, brief
from clip_ood.features.identity import pairs
from clip_ood.model import ReferenceHead
from clip_ood.outputs import Outputs


class Predictor(nn.Module):
    """Judges images by one or several detectors of a finished run: pixels → features → scores → p-values.

    An image is OOD if its score is below the detector's threshold; `decisions` has one threshold for each detector. With `fdr`,
    there is none: the images of a call are decided together, by `benjamini_hochberg` of their p-values. With `per_class`, threshold and
    p-value are those among the calibration images of the same predicted class. Images are encoded once,
    in batches of `batch_size`; detectors that search the bank share one search. `nearest` ID images are named for each, if the folder holds
    a bank, and `words` of its vocabulary, if it holds one. Raises: ValueError for a detector that the run does not have, and for too few
    val images for `accept` or `fdr`.
    """

    def __init__(
        self,
        saved: SavedDetector,
        backbone: Backbone,
        detector: str | Sequence[str] | None = None,
        accept: float | None = None,
        fdr: float | None = None,
        nearest: int = 0,
        per_class: bool = False,
        words: int = 0,
    ) -> None:
        super().__init__()
        self.saved, self.columns = saved, saved.chosen(detector)
        self.decisions = decisions_of(saved, self.columns, accept, fdr, per_class)
        self.accept, self.fdr, self.per_class = self.decisions[0].accept, fdr, per_class
        self.batch_size: int = saved.manifest["batch_size"]
        self.class_names = saved.reference.class_names
        self.logit_scale = saved.reference.logit_scale
        self.encoder = saved.encoder
        self.backbone, self.detectors = backbone, nn.ModuleList(saved.detectors(self.columns).values())
        self.inside = reduce(or_, (each.inside for each in self.detectors))
        self.class_predictor = saved.class_predictor
        self.by = HEAD if self.class_predictor is None else self.class_predictor.by
        self.images, self.nearest = saved.bank_images(), nearest
        self.bank, bank_labels = None, None
        if self.by == KNN or nearest:  # the detectors' own bank, if they have one
            searched = (each for each in self.detectors if each.searches and each.layer is None)
            banks = [
                each for detector in searched for each in statistics_of(detector).values() if isinstance(each, Bank)
            ]
            self.bank = next(iter(banks), None) or saved.bank()
            self.bank.expect(nearest)
        if self.by == KNN:
            bank_labels = saved.bank_labels(self.bank)
        if nearest and (self.images is None or not 0 < nearest < len(self.bank)):
            raise UserError(_no_neighbours(saved, nearest, self.bank))
        if nearest:
            saved.check_named(self.images, self.bank)
        saved.check_words(words)
        self.vocabulary, self.words = saved.vocabulary if words else None, words
        self.register_buffer("bank_labels", bank_labels, persistent=False)
        self.head = ReferenceHead(saved.reference)
        saved.load_texts({field for each in self.detectors for field in each.requires})
        self._try(saved)

    @torch.inference_mode()
    def _try(self, saved: SavedDetector) -> None:
        """Judges two made-up pictures. Raises: DetectorFolderError if the folder's content gives no scores for them."""
        if self.takes_features:
            pixels = torch.ones(2, saved.manifest["width"])
        else:
            pixels = torch.stack([self.backbone.transform(Image.new("RGB", (8, 8)))] * 2)
        encoded = self._encoded(pixels.to(self.device))  # outside the try: the encoder's errors are not the folder's
        try:
            outputs = self.head(encoded).map(torch.nan_to_num)
            predictions = self.predictions(self.predict(outputs), [None, None])
        except Exception as error:  # anybody may have written these tensors, so anything may be raised
            raise DetectorFolderError(
                f"{saved.folder} does not fit its encoder or this version of clip-ood ({type(error).__name__}: "
                f"{brief(error, 200)})"
            ) from error
        if wrong := next((each.detector for each in predictions if isnan(each.score)), None):
            raise DetectorFolderError(f"{saved.folder}: what {wrong} learnt gives no score (NaN): do not use it")

    @property
    def takes_features(self) -> bool:
        """Whether features are judged, which were given to the run, and no images."""
        return isinstance(self.backbone, GivenFeatures)

    @property
    def column(self) -> str:
        """The name of the first detector."""
        return self.columns[0]

    @property
    def detector(self) -> Detector:
        """The first detector."""
        return self.detectors[0]

    @property
    def threshold(self) -> float | None:
        """The threshold of the first detector, with `per_class` that of the classes which have none of their own; None with `fdr`."""
        return self.decisions[0].threshold

    @property
    def expected(self) -> float | None:
        """The share of new ID images that the first detector is expected to accept, None with `fdr` and `per_class`."""
        return self.decisions[0].expected

    @torch.inference_mode()
    def forward(
        self, images: OneImage | Iterable[OneImage] | Mapping[str, Sequence]
    ) -> list[Prediction] | dict[str, Any]:
        """Returns the predictions of each detector on images, in their order.

        Images are paths or addresses (s3://…), PIL images, the bytes of files, open files, and tensors (3, H, W), uint8 or floats in
        [0, 1]. The first four are prepared alike (see `clip_ood.files.pictures.decode`); tensors are taken as they are. A run on features
        that were given judges an array (N, D) of them. Columns, as `map` of datasets and `map_batches` of Ray give them, are judged by
        `judge_columns`.

        Raises: UnreadableImage or OSError for a path that is no image, TypeError and ValueError for anything else that is no
        image.
        """
        if isinstance(images, Mapping):
            return judge_columns(self, images)
        if hasattr(images, "columns") and not self.takes_features:  # a frame would be taken for a list of its names
            raise UserError(
                f"A batch is a mapping of columns, and no {type(images).__name__}: leave batch_format out, or give {{name: list}}"
            )
        if isinstance(images, str | Path | Image.Image | bytes | IOBase):
            images = [images]
        if isinstance(images, Tensor) and images.ndim == 3:
            images = [images]
        if self.takes_features:
            return self.decided(judge_features(self, images))
        predictions = []
        for batch in _batches(images, self.batch_size):
            pictures, contents = zip(*pictures_of(batch), strict=True)
            pixels = torch.stack([self.backbone.transform(each) for each in pictures])
            judged = self.predict(self.outputs(pixels.to(self.device)), pairs(contents))
            predictions += self.predictions(judged, [name_of(each) for each in batch])
        return self.decided(predictions)

    def decided(self, predictions: list[Prediction]) -> list[Prediction]:
        """Returns predictions with what `fdr` decides over all of them together; without it, as they are."""
        if self.fdr is None:
            return predictions
        flagged = cutoffs(((each.detector, each.p_value) for each in predictions), self.fdr)
        return [replace(each, is_ood=each.p_value <= flagged[each.detector]) for each in predictions]

    @torch.inference_mode()
    def heat_map(self, image: OneImage, detector: str | None = None) -> HeatMap:
        """Returns where an image is unlike the ID training images, by a detector that scores patches (default: the first one).

        A patch of the run's own image is not compared with those of that image. Raises: UserError for a detector that scores no
        patches, or that was not loaded, and as a call does for what is no image.
        """
        column = detector or next((each for each in self.columns if each in self.saved.local), self.column)
        self.saved.check_local(column)
        if column not in self.columns:
            raise UserError(
                f"heat_map: {column} was not loaded, but {', '.join(self.columns)}: load the run with detector={column!r}"
            )
        picture, content = picture_of(image)
        outputs = self.outputs(self.backbone.transform(picture)[None].to(self.device))
        outputs, _ = self._with_copies(outputs, pairs([content]))
        scores = self.detectors[self.columns.index(column)].local_scores(outputs)[0]
        return heat_map(scores, picture, self.backbone.transform, self.backbone.preprocessing, column)

    @property
    def device(self) -> torch.device:
        """The device on which images are encoded."""
        return next(self.backbone.parameters()).device

    def outputs(self, pixels: Tensor) -> Outputs:
        """Returns the outputs of encoder and head for images (B, 3, H, W) that went through the encoder's transform."""
        return self.head(self._encoded(pixels))

    def _encoded(self, pixels: Tensor) -> Outputs:
        return self.encoder.encode(self.backbone, pixels, self.inside)

    def predict(self, outputs: Outputs, contents: np.ndarray | None = None) -> BatchPredictions:
        """Returns scores, p-values and classes of some images, whose files have `contents` (B, 2), 0 where that is not known."""
        outputs, copies = self._with_copies(outputs, contents)
        further = {}
        if self.by == KNN:
            further["vote"] = lambda rows: voted(rows, self.bank, self.bank_labels)
        if self.nearest:
            further["nearest"] = lambda rows: torch.stack(self.bank.nearest(rows, self.nearest), dim=2).double()
        word_cosines, words = (None, None) if not self.words else self._nearest_words(outputs.embeddings)
        values = [value.cpu() for value in score_together(list(self.detectors), outputs, list(further.values()))]
        scores, asked = values[: len(self.detectors)], dict(zip(further, values[len(self.detectors) :], strict=True))
        if self.images is not None:
            scores = [self.images.out_of_sample(copies, *each) for each in zip(self.columns, scores, strict=True)]
        cosines, neighbours = (None, None) if not self.nearest else asked["nearest"].unbind(2)
        if self.by == KNN:
            classes, confidence = asked["vote"][:, 0].long(), asked["vote"][:, 1]
        else:
            predicted = predict(outputs, self.head.text_embeddings, self.logit_scale, self.by)
            classes, confidence = (None, None) if predicted is None else (value.cpu() for value in predicted)
        decided, is_ood = list(zip(self.decisions, scores, strict=True)), None
        p_values = torch.stack([decision.p_values(each, classes) for decision, each in decided], dim=1)  # (B, K)
        if self.fdr is None:
            is_ood = torch.stack([decision.is_ood(each, classes) for decision, each in decided], dim=1)
        scores = torch.stack(scores, dim=1)
        return BatchPredictions(
            scores, p_values, is_ood, classes, confidence, copies, cosines, neighbours, word_cosines, words
        )

    def _with_copies(self, outputs: Outputs, contents: np.ndarray | None) -> tuple[Outputs, np.ndarray]:
        """Returns outputs that know which of the run's own ID images they are, and the place of each among these (B,), −1 for none."""
        copies = np.full(len(outputs), -1)
        if self.images is not None and contents is not None:
            copies = self.images.find(contents)
        if (copies >= 0).any():
            outputs = replace(outputs, copy_of=self.images.copies(copies).to(outputs.features.device))
        return outputs, copies

    def predictions(self, judged: BatchPredictions, names: list[str | None]) -> list[Prediction]:
        """Returns a Prediction for each image and detector, image by image."""
        empty = [None] * len(names)
        classes, confidence = empty, empty
        if judged.classes is not None:  # -1: no neighbour has a class
            labels = judged.classes.tolist()
            classes = [None if label < 0 else self.class_names[label] for label in labels]
            confidence = [
                None if label < 0 else value for label, value in zip(labels, judged.confidence.tolist(), strict=True)
            ]
        scores, p_values = judged.scores.tolist(), judged.p_values.tolist()
        undecided = [[None] * len(self.decisions)] * len(names)
        is_ood = undecided if judged.is_ood is None else judged.is_ood.tolist()
        copies = [None if place < 0 else self.images.paths[place] for place in judged.copies.tolist()]
        nearest = empty if judged.cosines is None else self._neighbours(judged.cosines, judged.neighbours.long())
        words = empty if judged.words is None else self._named(judged.word_cosines, judged.words)
        about = [(classes[i], confidence[i]) for i in range(len(names))]
        return [
            Prediction(
                names[i],
                is_ood[i][k],
                scores[i][k],
                p_values[i][k],
                *about[i],
                decision.column,
                copies[i],
                nearest[i],
                words[i],
            )
            for i, (k, decision) in product(range(len(names)), enumerate(self.decisions))
        ]

    def _nearest_words(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        self.vocabulary = self.vocabulary.to(embeddings.device)
        cosines, places = self.vocabulary.nearest(normalize(embeddings.float(), dim=1), self.words)
        return cosines.double().cpu(), places.cpu()

    def _named(self, cosines: Tensor, places: Tensor) -> list[tuple[NearWord, ...]]:
        return [
            tuple(map(NearWord, words, each))
            for words, each in zip(self.vocabulary.named(places), cosines.tolist(), strict=True)
        ]

    def _neighbours(self, cosines: Tensor, rows: Tensor) -> list[tuple[Neighbour, ...]]:
        return [
            tuple(map(Neighbour, self.images.names(of), each)) for of, each in zip(rows, cosines.tolist(), strict=True)
        ]


def load(
    place: str | Path,
    detector: str | Sequence[str] | None = None,
    accept: float | None = None,
    encoder: str | None = None,
    device: str | torch.device = "cpu",
    trust_classes: bool = False,
    allow_download: bool = False,
    fdr: float | None = None,
    nearest: int = 0,
    per_class: bool = False,
    words: int = 0,
) -> Predictor:
    """Loads the predictor of a finished run, or of a copy of its folder detector/.

    `load("runs/demo")(["a.jpg", picture, tensor])` returns a list of Predictions.

    detector: a name (default: the run's first detector), or several ("knn,vim", "all" or a list), each of which gives a
    prediction on each image; accept: the share of ID images to accept (default: the run's, 0.95); encoder: the place of the
    encoder's weights, if it is not where the run had them; trust_classes: lets the folder import detector classes that are not
    part of this project; allow_download: lets weights that the local cache lacks be downloaded from where the run had them
    (otherwise no host is contacted); fdr: instead of accept, the false discovery rate at which the images of each call are
    flagged together; nearest: how many of the nearest ID images each prediction names; per_class: a threshold for each predicted
    class; words: how many of the nearest words of the run's vocabulary each prediction names.
    Raises: DetectorFolderError for a folder that cannot be used, ValueError as `Predictor` does.
    """
    for name, count in {"nearest": nearest, "words": words}.items():
        if not isinstance(count, Integral) or count < 0:
            raise UserError(f"{name} = {count!r}, expected a whole number, 0 or more")
    saved = SavedDetector(Path(place), trust_classes)
    decisions_of(saved, saved.chosen(detector), accept, fdr, per_class)  # raises before the encoder is loaded
    saved.check_words(words)
    backbone = saved.backbone(encoder, allow_download)
    return Predictor(saved, backbone, detector, accept, fdr, nearest, per_class, words).to(device)


def _no_neighbours(saved: SavedDetector, nearest: int, bank: Bank) -> str:
    if saved.bank_images() is None:
        return (
            f"{saved.folder} does not say which ID images it holds, so that none can be named: run the experiment again"
        )
    return f"nearest = {nearest}, expected 1 to {len(bank) - 1}: {saved.folder} holds {len(bank)} ID images"


def _batches(images: Iterable, size: int) -> Iterator[list]:
    iterator = iter(images)
    while batch := list(islice(iterator, size)):
        yield batch
