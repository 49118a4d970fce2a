"""Judges whether images are OOD: the detectors of a finished run, with their thresholds, as a function of images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO, IOBase
from itertools import islice, product
from math import isnan
from pathlib import Path
from typing import BinaryIO

import torch
from PIL import Image
from torch import Tensor, nn

from clip_ood.backbones.backbone import Backbone
from clip_ood.class_predictions import HEAD, KNN, predict, voted
from clip_ood.detect.decisions import cutoffs, decisions_of
from clip_ood.detect.manifest import DetectorFolderError
from clip_ood.detect.saved import SavedDetector
from clip_ood.detectors.bank import Bank
from clip_ood.detectors.detector import Detector, score_together
from clip_ood.detectors.statistic import statistics_of
from clip_ood.errors import UserError
from clip_ood.files.pictures import as_picture, decode, read_image
from clip_ood.model import classify, encode, linear
from clip_ood.outputs import Outputs

OneImage = str | Path | Image.Image | bytes | BinaryIO | Tensor


@dataclass(frozen=True)
class Prediction:
    """The judgement of a detector on one image.

    path: the file's path, None for a picture that came without one; is_ood: p_value ≤ 1 − accept, or what fdr decides over all
    images (None before it does); score: higher = more in-distribution; p_value: the share of ID images that would score as low, see `clip_ood.calibration`; predicted_class and
    its confidence: from what the predictor's `class_predictor` names, so that confidence is the probability of the head or the
    text embeddings, or the share of the neighbours' votes; both are None without classes.
    """

    path: str | None
    is_ood: bool | None
    score: float
    p_value: float
    predicted_class: str | None
    confidence: float | None
    detector: str


@dataclass(frozen=True)
class BatchPredictions:
    """The judgements of K detectors on B images, as tensors on the CPU: scores (B, K) float32, p_values (B, K) float64, is_ood
    (B, K) bool, None if fdr decides later; classes (B,) int64 and confidence (B,) float64, both None without classes.
    """

    scores: Tensor
    p_values: Tensor
    is_ood: Tensor | None
    classes: Tensor | None
    confidence: Tensor | None


class Predictor(nn.Module):
    """Judges images by one or several detectors of a finished run: pixels → features → scores → p-values.

    An image is OOD if its score is below the detector's threshold; `decisions` has one threshold for each detector. With `fdr`,
    there is none: the images of a call are decided together, by `benjamini_hochberg` of their p-values. Images are encoded once,
    in batches of `batch_size`; detectors that search the bank share one search.
    Raises: ValueError for a detector that the run does not have, and for too few val images for `accept` or `fdr`.
    """

    def __init__(
        self,
        saved: SavedDetector,
        backbone: Backbone,
        detector: str | Sequence[str] | None = None,
        accept: float | None = None,
        fdr: float | None = None,
    ) -> None:
        super().__init__()
        self.columns = saved.chosen(detector)
        self.decisions = decisions_of(saved, self.columns, accept, fdr)
        self.accept, self.fdr = self.decisions[0].accept, fdr
        self.batch_size: int = saved.manifest["batch_size"]
        self.class_names = saved.reference.class_names
        self.logit_scale = saved.reference.logit_scale
        self.dtype = getattr(torch, saved.encoder.features)
        self.autocast = None if saved.encoder.autocast is None else getattr(torch, saved.encoder.autocast)
        self.backbone, self.detectors = backbone, nn.ModuleList(saved.detectors(self.columns).values())
        self.class_predictor = saved.class_predictor
        self.by = HEAD if self.class_predictor is None else self.class_predictor.by
        self.bank, bank_labels = None, None
        if self.by == KNN:  # the detectors' own bank, if they have one
            searched = (each for each in self.detectors if each.searches)
            banks = [
                each for detector in searched for each in statistics_of(detector).values() if isinstance(each, Bank)
            ]
            self.bank, bank_labels = next(iter(banks), None) or saved.bank(), saved.bank_labels()
        self.register_buffer("bank_labels", bank_labels, persistent=False)
        for name in ("weight", "bias", "text_embeddings"):
            self.register_buffer(name, getattr(saved.reference, name), persistent=False)
        self._try(saved)

    @torch.inference_mode()
    def _try(self, saved: SavedDetector) -> None:
        """Judges two made-up pictures. Raises: DetectorFolderError if the folder's content gives no scores for them."""
        pixels = torch.stack([self.backbone.transform(Image.new("RGB", (8, 8)))] * 2)
        encoded = self._encoded(pixels.to(self.device))  # outside the try: the encoder's errors are not the folder's
        try:
            outputs = classify(encoded, linear(self.weight, self.bias)).map(torch.nan_to_num)
            predictions = self.predictions(self.predict(outputs), [None, None])
        except Exception as error:  # anybody may have written these tensors, so anything may be raised
            raise DetectorFolderError(
                f"{saved.folder} does not fit its encoder or this version of clip-ood ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]})"
            ) from error
        if wrong := next((each.detector for each in predictions if isnan(each.score)), None):
            raise DetectorFolderError(f"{saved.folder}: what {wrong} learnt gives no score (NaN): do not use it")

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
        """The threshold of the first detector, None with `fdr`."""
        return self.decisions[0].threshold

    @property
    def expected(self) -> float | None:
        """The share of new ID images that the first detector is expected to accept, None with `fdr`."""
        return self.decisions[0].expected

    @torch.inference_mode()
    def forward(self, images: OneImage | Iterable[OneImage]) -> list[Prediction]:
        """Returns the predictions of each detector on images, in their order.

        Images are paths, PIL images, the bytes of files, open files, and tensors (3, H, W), uint8 or floats in [0, 1]. The first
        four are prepared alike (see `clip_ood.files.pictures.decode`); tensors are taken as they are.

        Raises: UnreadableImage or OSError for a path that is no image, TypeError and ValueError for anything else that is no
        image.
        """
        if isinstance(images, str | Path | Image.Image | bytes | IOBase):
            images = [images]
        if isinstance(images, Tensor) and images.ndim == 3:
            images = [images]
        predictions = []
        for batch in _batches(images, self.batch_size):
            pixels = torch.stack([self.backbone.transform(_picture(each)) for each in batch])
            names = [str(each) if isinstance(each, str | Path) else None for each in batch]
            predictions += self.predictions(self.predict(self.outputs(pixels.to(self.device))), names)
        if self.fdr is None:
            return predictions
        flagged = cutoffs(((each.detector, each.p_value) for each in predictions), self.fdr)
        return [replace(each, is_ood=each.p_value <= flagged[each.detector]) for each in predictions]

    @property
    def device(self) -> torch.device:
        """The device on which images are encoded."""
        return next(self.backbone.parameters()).device

    def outputs(self, pixels: Tensor) -> Outputs:
        """Returns the outputs of encoder and head for images (B, 3, H, W) that went through the encoder's transform."""
        return classify(self._encoded(pixels), linear(self.weight, self.bias))

    def _encoded(self, pixels: Tensor) -> Outputs:
        """Returns g and h rounded as the feature store keeps them."""
        with torch.autocast(pixels.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return encode(self.backbone, pixels).map(lambda value: value.to(self.dtype))

    def predict(self, outputs: Outputs) -> BatchPredictions:
        """Returns scores, p-values and classes of some images."""
        vote = [] if self.bank is None else [lambda rows: voted(rows, self.bank, self.bank_labels)]
        values = [value.cpu() for value in score_together(list(self.detectors), outputs, vote)]
        scores = values[: len(self.detectors)]
        if vote:
            classes, confidence = values[-1][:, 0].long(), values[-1][:, 1]
        else:
            predicted = predict(outputs, self.text_embeddings, self.logit_scale, self.by)
            classes, confidence = (None, None) if predicted is None else (value.cpu() for value in predicted)
        p_values = [decision.calibration.p_values(each) for decision, each in zip(self.decisions, scores, strict=True)]
        scores, p_values = torch.stack(scores, dim=1), torch.stack(p_values, dim=1)  # (B, K)
        thresholds = [decision.threshold for decision in self.decisions]
        is_ood = None if self.fdr is not None else scores < torch.tensor(thresholds, dtype=scores.dtype)
        return BatchPredictions(scores, p_values, is_ood, classes, confidence)

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
        return [
            Prediction(names[i], is_ood[i][k], scores[i][k], p_values[i][k], classes[i], confidence[i], decision.column)
            for i, (k, decision) in product(range(len(names)), enumerate(self.decisions))
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
) -> Predictor:
    """Loads the predictor of a finished run, or of a copy of its folder detector/.

    `load("runs/demo")(["a.jpg", picture, tensor])` returns a list of Predictions.

    detector: a name (default: the run's first detector), or several ("knn,vim", "all" or a list), each of which gives a
    prediction on each image; accept: the share of ID images to accept (default: the run's, 0.95); encoder: the place of the
    encoder's weights, if it is not where the run had them; trust_classes: lets the folder import detector classes that are not
    part of this project; allow_download: lets weights that the local cache lacks be downloaded from where the run had them
    (otherwise no host is contacted); fdr: instead of accept, the false discovery rate at which the images of each call are
    flagged together.
    Raises: DetectorFolderError for a folder that cannot be used, ValueError as `Predictor` does.
    """
    saved = SavedDetector(Path(place), trust_classes)
    decisions_of(saved, saved.chosen(detector), accept, fdr)  # raises before the encoder is loaded
    return Predictor(saved, saved.backbone(encoder, allow_download), detector, accept, fdr).to(device)


def _picture(image: OneImage) -> Image.Image:
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return as_picture(image)
    if isinstance(image, bytes):
        return decode(BytesIO(image))
    if isinstance(image, IOBase):
        return decode(image)
    if not isinstance(image, Tensor):
        raise TypeError(
            "An image is a path, a PIL image, the bytes of a file, an open file or a tensor (3, H, W), not a "
            f"{type(image).__name__}; of an array: PIL.Image.fromarray(array)"
        )
    return _of_tensor(image)


def _of_tensor(image: Tensor) -> Image.Image:
    if image.ndim != 3 or len(image) != 3 or not image.numel():
        raise UserError(f"An image as a tensor has the shape (3, H, W), not {tuple(image.shape)}")
    if image.is_floating_point():
        if not (image.min() >= 0 and image.max() <= 1):
            raise UserError(
                f"An image of floats has pixels in [0, 1], not {image.min():g} … {image.max():g}: give it as it is before the "
                "encoder's normalisation, or as uint8"
            )
        image = image.double().mul(255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise UserError(f"An image as a tensor is uint8, or floats in [0, 1], not {image.dtype}")
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def _batches(images: Iterable, size: int) -> Iterator[list]:
    iterator = iter(images)
    while batch := list(islice(iterator, size)):
        yield batch
