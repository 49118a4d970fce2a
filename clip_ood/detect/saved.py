"""A fitted detector as a folder that can be copied: JSON and safetensors, nothing pickled.

detector.json             what it is: encoder, classes, detectors, thresholds, versions, the SHA-256 of every other file
state.safetensors         text embeddings, head or Tip-Adapter's cache, what each detector learnt, the calibration scores
calibrated_on.parquet     the names and hashes of the images of these scores, if it was calibrated again (clip-ood recalibrate)
bank-00000.safetensors    the features of ID training images, a file a process (only where a detector searches them); bank-layer6-… those
                          of a layer
bank.parquet              the names of ID training images, hashes of their content, and scores by what has not seen them
vocabulary.parquet        words and their embeddings (only with data.vocabulary)
encoder/                  the image encoder's weights, if the user asked for them or the run trained them
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import fields
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_ood.backbones.backbone import Backbone
from clip_ood.backbones.downloads import offline
from clip_ood.backbones.image_encoder import load_image_encoder
from clip_ood.backbones.library import library
from clip_ood.backbones.spec import EncoderSpec, ImageSpec
from clip_ood.calibration import Calibration, Choice
from clip_ood.class_predictions import ClassPredictor
from clip_ood.detect import vocabulary_file
from clip_ood.detect.bank_images import FILE, BankImages
from clip_ood.detect.checked_files import CheckedFiles
from clip_ood.detect.manifest import ENCODER, MANIFEST, STATE, DetectorFolderError, find_folder, read_manifest
from clip_ood.detect.saved_encoder import Encoder, find_encoder
from clip_ood.detectors.bank import Bank
from clip_ood.detectors.build import build_detectors, load_class
from clip_ood.detectors.detector import Detector
from clip_ood.detectors.names import DETECTORS, read_specs
from clip_ood.detectors.statistic import statistics_of
from clip_ood.errors import UserError
from clip_ood.files.records import Unfit
from clip_ood.files.shapes import check_bank, check_finite, check_reference, check_shapes
from clip_ood.files.text_files import OTHER_BYTES, not_utf8
from clip_ood.outputs import WITH_NEGATIVES, Cache, NegativeLabels, Outputs, Reference
from clip_ood.texts.vocabulary import Vocabulary

ALL = "all"  # stands for every detector of a run


def bank_name(layer: str | None) -> str:
    """Returns how the names of a bank's files begin."""
    return "bank" if layer is None else f"bank-layer{layer}"


class SavedDetector:
    """The detector in a run's folder, or in a copy of its folder detector/.

    Files are checked against their SHA-256 before they are used, which shows damage, but not who wrote them. A detector class
    that is not part of this project is imported only with `trust_classes`.
    Raises: DetectorFolderError for a folder that holds no detector, is damaged, was changed, or is of another version.
    """

    def __init__(self, place: Path, trust_classes: bool = False) -> None:
        self.folder, self.trust_classes = find_folder(Path(place)), trust_classes
        if not_utf8(str(self.folder)):
            raise DetectorFolderError(OTHER_BYTES.format(self.folder))
        self.manifest = read_manifest(self.folder / MANIFEST)
        self.files = CheckedFiles(self.folder, self.manifest["files"], self.manifest.get("doubles", ()))
        self._loaded_from: tuple[str | None, bool] = (None, False)  # as `backbone` was asked
        if not self.columns:
            why = "; ".join(f"{each['detector']}: {each['reason']}" for each in self.manifest["omitted"])
            raise DetectorFolderError(f"{self.folder} holds no detector, since none of the run's can be saved ({why})")

    @property
    def columns(self) -> list[str]:
        """The names of its detectors; the first is the default."""
        return [each["column"] for each in self.manifest["detectors"]]

    @property
    def accept(self) -> float:
        """The share of ID images that the thresholds in the manifest accept."""
        return self.manifest["accept"]

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder whose features the detectors see."""
        described = self.manifest["encoder"]
        return Encoder(**(described | {"spec": ImageSpec(**described["spec"])}))

    @cached_property
    def texts(self) -> Encoder | None:
        """The encoder of texts that some detector or test-time method asks while it scores; None if none does."""
        told = self.manifest.get("texts")
        if told is None:
            return None
        return Encoder(EncoderSpec(**told["spec"]), told["fingerprint"], self.encoder.features)

    @cached_property
    def _text_side(self) -> Backbone:
        """Loads the encoder of texts from where `backbone` was told to load, where it is the same model. Raises as `backbone` does."""
        self._check_trusted(self.texts)
        place, allow_download = self._loaded_from
        own, images = self.texts.spec, self.encoder.spec
        place = place if (own.model, own.pretrained) == (images.model, images.pretrained) else None
        with nullcontext() if allow_download else offline():
            return find_encoder(self.texts, self.folder, place, allow_download).text_side()

    def load_texts(self, requires: Iterable[str]) -> None:
        """Loads the encoder of texts if it is among the fields that something needs, so that its errors come before any image."""
        if "text_tower" in requires and self.texts is not None:
            self.reference.text_tower()

    @cached_property
    def reference(self) -> Reference:
        """The classes, text embeddings, head or cache, and negative labels."""
        own, names = self.files.tensors(STATE, "reference."), self.manifest["class_names"]
        with self.files.fitting(STATE):
            check_reference(own, None if names is None else len(names))
        values: dict[str, Any] = {name: value for name, value in own.items() if "." not in name}
        words = self.manifest.get("words", {})
        for name in WITH_NEGATIVES:
            if f"{name}.classes" in own:
                negatives = own[f"{name}.negatives"]
                values[name] = NegativeLabels(own[f"{name}.classes"], negatives, tuple(words.get(name, ())))
        if "cache.keys" in own:
            numbers = {name: own[f"cache.{name}"].item() for name in ("alpha", "beta")}
            values["cache"] = Cache(own["cache.keys"], own["cache.values"], **numbers)
        if self.texts is not None:
            values["text_tower"] = lambda: self._text_side
        values["class_names"] = None if names is None else tuple(names)
        scale, bias = self.manifest["logit_scale"], self.manifest.get("logit_bias")
        return Reference(logit_scale=scale, logit_bias=bias, **values)

    @property
    def class_predictor(self) -> ClassPredictor | None:
        """What predicts classes; None stands for the head or, without one, the text embeddings."""
        told = self.manifest.get("predictor")
        return None if told is None else ClassPredictor(**told)

    def bank_labels(self, bank: Bank) -> Tensor:
        """The classes of the bank's images by their index, if k-NN predicts classes."""
        found = self.files.tensors(STATE, "bank_labels").get("")
        with self.files.fitting(STATE):
            if found is None:
                raise Unfit("it has no bank_labels, by which k-NN predicts")
            check_finite({"bank_labels": found})
            check_shapes({"bank_labels": found}, {"bank_labels": "n"}, {})
            if len(found) and not -1 <= found.min() <= found.max() < len(self.manifest["class_names"] or ()):
                raise Unfit("bank_labels names classes that there are not")
            if any(not 0 <= each.min() <= each.max() < len(found) for each in bank.indices if len(each)):
                raise Unfit("bank_labels lacks images of the bank")
        return found

    def state(self) -> dict[str, Tensor]:
        """Returns all tensors but the bank, as they are stored: what detectors have learnt, the reference, and calibration scores."""
        return self.files.stored(STATE, "")

    def check_column(self, column: str) -> None:
        """Raises ValueError for a detector that is not there, with the reason if the run left it out."""
        if column in self.columns:
            return
        why = next((each["reason"] for each in self.manifest["omitted"] if each["detector"] == column), None)
        raise UserError(
            f"{self.folder} has no detector {column!r}{f': {why}' if why else ''}. It has {', '.join(self.columns)}"
        )

    def chosen(self, asked: str | Sequence[str] | None) -> list[str]:
        """Returns the detectors that were asked for: a name, several with commas between them, a list, or "all".

        None asks for the first. Raises as `check_column` does.
        """
        if asked is None:
            return self.columns[:1]
        if isinstance(asked, str):
            if asked == ALL and ALL not in self.columns:
                return self.columns
            asked = [asked] if asked in self.columns else [name.strip() for name in asked.split(",")]
        for column in asked or [""]:
            self.check_column(column)
        return list(dict.fromkeys(asked))

    @property
    def local(self) -> list[str]:
        """The names of its detectors that score single patches, among those that are part of this project."""
        own = [each for each in self.manifest["detectors"] if each["spec"]["name"] in DETECTORS]
        return [each["column"] for each in own if load_class(read_specs([each["spec"]])[0]).local]

    def check_local(self, column: str) -> None:
        """Raises UserError for a detector that scores no single patches, and names those that do."""
        if column in self.local:
            return
        others = (
            f"of this run's detectors, {', '.join(self.local)} can"
            if self.local
            else "none of this run's detectors can"
        )
        raise UserError(
            f"{column} looks at no patches, so that it has no heat map; {others}: "
            + ("name one of them" if self.local else "run the experiment with local_knn or gl_mcm among its detectors")
        )

    def detector(self, column: str) -> Detector:
        """Loads a detector, ready to score. Raises as `check_column` does."""
        return self.detectors([column])[column]

    def detectors(self, columns: Iterable[str] | None = None) -> dict[str, Detector]:
        """Loads detectors by name, ready to score (all of them for None); they share one bank."""
        wanted = self.columns if columns is None else list(columns)
        for column in wanted:
            self.check_column(column)
        entries = {each["column"]: each for each in self.manifest["detectors"]}
        specs = [entries[column]["spec"] | {"as": column} for column in wanted]
        if not self.trust_classes and (own := [spec["name"] for spec in specs if spec["name"] not in DETECTORS]):
            raise UserError(
                f"{self.folder}: {own[0]} is a class of somebody's own, and loading it runs its code: if you trust the folder, "
                "add --trust-classes (in Python trust_classes=True), or name another detector"
            )
        given = {each.name for each in fields(Outputs)}
        given |= {name for name, value in vars(self.reference).items() if value is not None}
        try:
            built, omitted = build_detectors(specs, self.reference, given)
        except UserError as error:
            raise DetectorFolderError(f"{self.folder} does not fit this version of clip-ood: {error}") from error
        if omitted:
            raise DetectorFolderError(f"{self.folder}: {omitted[0].detector} {omitted[0].reason}")
        bank = cache(self.bank)
        for column, detector in built.items():
            longer = tuple(f"detectors.{each}." for each in entries if each.startswith(f"{column}."))
            state = self.files.tensors(STATE, f"detectors.{column}.", but=longer)
            detector.restore(state)
            detector.notes = list(entries[column]["notes"])
            for name, statistic in statistics_of(detector).items():
                if isinstance(statistic, Bank) and detector.searches:
                    setattr(detector, name, bank(detector.layer))
        return built

    def calibration(self, column: str) -> Calibration:
        """Returns a detector's scores of the ID val images. Raises ValueError if the run had none."""
        self.check_column(column)
        scores = self.files.tensors(STATE, "calibration.").get(column)
        if scores is None:
            raise UserError(
                f"{self.folder} has no threshold: its run had no ID val images to calibrate on. Hold some out "
                "(data.splits.val above 0, or data.id.val), and run it again"
            )
        classes = self.files.tensors(STATE, "calibration_class.").get(column)
        with self.files.fitting(STATE):
            check_finite({column: scores})
            check_shapes({column: scores}, {column: "n"}, sizes := {})
            if classes is not None:
                check_shapes({column: classes}, {column: "n"}, sizes)
                known = torch.arange(-1, len(self.manifest["class_names"] or ()))
                if classes.dtype != torch.int64 or not torch.isin(classes, known).all():
                    raise Unfit("calibration_class names classes that there are not")
        entry = next(each for each in self.manifest["detectors"] if each["column"] == column)
        choice = entry.get("choice")
        choice = None if choice is None else Choice(**choice)
        return Calibration(scores, choice, entry.get("calibrated_by", "split"), classes)

    def backbone(self, encoder: str | None = None, allow_download: bool = False) -> Backbone:
        """Loads the image encoder: from the folder if it is there, otherwise as the run named it.

        `encoder` replaces the run's local-dir: folder or checkpoint file. No code of either is run, and a host is contacted only
        with `allow_download`, for what the local cache lacks. Raises: DetectorFolderError for an encoder that is not there any
        more, or that is another one than the run's, and for a configuration that is not allowed; UserError for an encoder of somebody's
        own code without `trust_classes`.
        """
        self._check_trusted(self.encoder)
        self._loaded_from = encoder, allow_download
        with nullcontext() if allow_download else offline():
            if self.encoder.in_folder:
                self.check_files(f"{ENCODER}/")
                return load_image_encoder(self.folder / ENCODER, self.encoder.spec)
            return find_encoder(self.encoder, self.folder, encoder, allow_download)

    def _check_trusted(self, encoder: Encoder) -> None:
        if library(encoder.spec.library).runs_own_code and not self.trust_classes:
            raise UserError(
                f"{self.folder}: its encoder, {encoder.spec.model}, is code of somebody's own, and loading it runs that code: if you "
                "trust it, add --trust-classes (in Python trust_classes=True)"
            )

    def check_files(self, prefix: str = "") -> None:
        """Raises DetectorFolderError if a file whose name begins with `prefix` is missing or is not what was saved."""
        self.files.check_all(prefix)

    def bank_images(self) -> BankImages | None:
        """Loads the names and contents of the ID training images; None if the folder has none, as those of earlier versions."""
        if FILE not in self.manifest["files"]:
            return None
        self.files.check(FILE)
        with self.files.fitting(FILE):
            return BankImages.read(self.folder / FILE)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The words by which images are named. Raises: UserError if the run had none."""
        name = vocabulary_file.FILE
        if name not in self.manifest["files"]:
            raise UserError(
                f"{self.folder} holds no words by which images could be named: run the experiment again with data.vocabulary (imagenet, "
                "wordnet or a file of words) and an encoder that reads text"
            )
        self.files.check(name)
        with self.files.fitting(name):
            return vocabulary_file.read_vocabulary(self.folder / name)

    def check_encodes(self) -> None:
        """Raises UserError if the run's features were given, so that nothing makes such features of images."""
        library(self.encoder.spec.library).check_encodes()

    def check_words(self, count: int) -> None:
        """Raises UserError if the vocabulary has fewer words than `count`, or if words are asked for and the run had no vocabulary."""
        if count and count > len(self.vocabulary):
            raise UserError(
                f"words = {count}, expected 1 to {len(self.vocabulary)}: the vocabulary in {self.folder} has no more words"
            )

    def check_named(self, images: BankImages, bank: Bank) -> None:
        """Raises DetectorFolderError unless `images` name every row of the bank."""
        with self.files.fitting(FILE):
            if not torch.isin(torch.cat(bank.indices).cpu(), torch.tensor(images.rows)).all():
                raise Unfit("it does not name all images of the bank")

    def bank(self, layer: str | None = None) -> Bank:
        """Loads the features of the ID training images, g or those of a layer."""
        parts, sizes = [], {}
        own = re.compile(rf"{re.escape(bank_name(layer))}-\d+\.safetensors")
        for name in sorted(filter(own.fullmatch, self.manifest["files"])):
            parts.append(self.files.tensors(name, ""))
            with self.files.fitting(name):
                check_bank(parts[-1], sizes)
        bank = Bank.restored(parts)
        bank.layer = layer
        return bank
