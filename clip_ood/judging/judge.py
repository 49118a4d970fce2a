"""Is this image OOD? One detector of a finished run, with its threshold, as a function of images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO, IOBase
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import torch
from PIL import Image
from torch import Tensor, nn

from clip_ood.backbones.backbone import Backbone
from clip_ood.head import head_logits
from clip_ood.judging.saved import SavedDetector
from clip_ood.outputs import Outputs
from clip_ood.predictions import predict
from clip_ood.reading import as_picture, decode, read_image

OneImage = str | Path | Image.Image | bytes | BinaryIO | Tensor


@dataclass(frozen=True)
class Verdict:
    """What a detector says of one image.

    path: of the file, None for a picture that came without one; is_ood: p_value ≤ 1 − accept; score: higher = more
    in-distribution; p_value: the share of ID images that would score as low, see `clip_ood.calibration`; predicted_class and
    its probability, confidence: of the head or the text embeddings, None without classes.
    """

    path: str | None
    is_ood: bool
    score: float
    p_value: float
    predicted_class: str | None
    confidence: float | None
    detector: str


@dataclass(frozen=True)
class Judged:
    """The same of B images, as tensors (B,) on the CPU: scores float32, p_values float64, is_ood bool; classes int64 and
    confidence float64, None without classes."""

    scores: Tensor
    p_values: Tensor
    is_ood: Tensor
    classes: Tensor | None
    confidence: Tensor | None


class Judge(nn.Module):
    """Judges images by one detector of a finished run: pixels → features → score → p-value.

    An image is OOD where its score lies below `threshold`, which accepts a share `accept` of new ID images (expected:
    `expected`), calibrated on `len(calibration)` ID val images. Images are encoded in batches of `batch_size`.
    Raises: ValueError for a detector that the run has not, and for too few val images for `accept`.
    """

    def __init__(
        self, saved: SavedDetector, backbone: Backbone, detector: str | None = None, accept: float | None = None
    ) -> None:
        super().__init__()
        self.column = saved.columns[0] if detector is None else detector
        self.accept = saved.accept if accept is None else accept
        self.calibration = saved.calibration(self.column)
        self.threshold, self.expected = self.calibration.threshold(self.accept), self.calibration.expected(self.accept)
        self.batch_size: int = saved.manifest["batch_size"]
        self.class_names = saved.reference.class_names
        self.logit_scale = saved.reference.logit_scale
        self.dtype = getattr(torch, saved.encoder.features)
        self.autocast = None if saved.encoder.autocast is None else getattr(torch, saved.encoder.autocast)
        self.backbone, self.detector = backbone, saved.detector(self.column)
        for name in ("weight", "bias", "text_embeddings"):
            self.register_buffer(name, getattr(saved.reference, name), persistent=False)

    @torch.inference_mode()
    def forward(self, images: OneImage | Iterable[OneImage]) -> list[Verdict]:
        """Verdicts on images, in their order: paths, PIL images, the bytes of files, open files, and tensors (3, H, W), uint8
        or floats in [0, 1]. The first four are prepared alike (see `clip_ood.reading.decode`); tensors are taken as they are.

        Raises: UnreadableImage or OSError for a path that is no image, TypeError and ValueError for what is none at all.
        """
        if isinstance(images, str | Path | Image.Image | bytes | IOBase):
            images = [images]
        if isinstance(images, Tensor) and images.ndim == 3:
            images = [images]
        verdicts = []
        for batch in _batches(images, self.batch_size):
            pixels = torch.stack([self.backbone.transform(_picture(each)) for each in batch])
            names = [str(each) if isinstance(each, str | Path) else None for each in batch]
            verdicts += self.verdicts(self.judged(self.outputs(pixels.to(self.device))), names)
        return verdicts

    @property
    def device(self) -> torch.device:
        """Where images are encoded."""
        return next(self.backbone.parameters()).device

    def outputs(self, pixels: Tensor) -> Outputs:
        """What encoder and head say of images (B, 3, H, W) that went through the encoder's transform."""
        device = pixels.device.type
        with torch.autocast(device, dtype=self.autocast, enabled=self.autocast is not None):
            features = self.backbone.encode_image(pixels)
        with torch.autocast(device, enabled=False):
            embeddings = self.backbone.project(features)
            features = features.to(self.dtype)  # as the feature store keeps them
            embeddings = None if embeddings is None else embeddings.to(self.dtype)
            logits = None if self.weight is None else head_logits(features, self.weight, self.bias)
        return Outputs(features, embeddings, logits)

    def judged(self, outputs: Outputs) -> Judged:
        """Scores, p-values and classes of some images."""
        scores = self.detector.score(outputs).cpu()
        predicted = predict(outputs, self.text_embeddings, self.logit_scale)
        classes, confidence = (None, None) if predicted is None else (value.cpu() for value in predicted)
        return Judged(scores, self.calibration.p_values(scores), scores < self.threshold, classes, confidence)

    def verdicts(self, judged: Judged, names: list[str | None]) -> list[Verdict]:
        """One value an image."""
        empty = [None] * len(names)
        classes = empty if judged.classes is None else [self.class_names[label] for label in judged.classes.tolist()]
        confidence = empty if judged.confidence is None else judged.confidence.tolist()
        columns = (judged.is_ood.tolist(), judged.scores.tolist(), judged.p_values.tolist(), classes, confidence)
        return [Verdict(name, *values, self.column) for name, *values in zip(names, *columns, strict=True)]


def load(
    place: str | Path,
    detector: str | None = None,
    accept: float | None = None,
    encoder: str | None = None,
    device: str | torch.device = "cpu",
    trust_classes: bool = False,
    allow_download: bool = False,
) -> Judge:
    """The judge of a finished run, or of a copy of its folder detector/: `load("runs/demo")(["a.jpg", picture, tensor])`.

    detector: default the run's first; accept: the share of ID images to accept, default the run's (0.95); encoder: where its
    weights are, if not where the run had them; trust_classes: let the folder import detectors of somebody's own;
    allow_download: let weights that the local cache lacks be fetched from where the run had them (else no host is contacted).
    Raises: DetectorFolderError for a folder that cannot be used, ValueError as `Judge`.
    """
    saved = SavedDetector(Path(place), trust_classes)
    saved.check_column(detector or saved.columns[0])
    saved.calibration(detector or saved.columns[0]).threshold(saved.accept if accept is None else accept)
    return Judge(saved, saved.backbone(encoder, allow_download), detector, accept).to(device)


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
        raise ValueError(f"An image as a tensor has the shape (3, H, W), not {tuple(image.shape)}")
    if image.is_floating_point():
        if not (image.min() >= 0 and image.max() <= 1):
            raise ValueError(
                f"An image of floats has pixels in [0, 1], not {image.min():g} … {image.max():g}: give it as it is before the "
                "encoder's normalisation, or as uint8"
            )
        image = image.double().mul(255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise ValueError(f"An image as a tensor is uint8, or floats in [0, 1], not {image.dtype}")
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def _batches(images: Iterable, size: int) -> Iterator[list]:
    iterator = iter(images)
    while batch := list(islice(iterator, size)):
        yield batch
