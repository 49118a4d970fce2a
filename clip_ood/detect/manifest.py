"""Finds, reads and checks the manifest of a detector's folder."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from clip_ood.backbones.fingerprint import digest
from clip_ood.backbones.library import LIBRARIES
from clip_ood.calibration import By
from clip_ood.errors import UserError
from clip_ood.files.records import Count, Damaged, Record, Share, Text, Unfit, fitting, read_record

FOLDER, MANIFEST, STATE, ENCODER = "detector", "detector.json", "state.safetensors", "encoder"
FORMAT = 3
Dtype = Literal["float32", "float16", "bfloat16"]
Predictor = Literal["head", "text", "knn"]
Gathered = Literal["all", "sample"]
# Format 1 does not say what predicts classes: it is the head or, without one, the texts. Format 2 names no `doubles`.
READ = (1, 2, 3)


class DetectorFolderError(UserError):
    """A detector's folder is missing, damaged, changed, or of another version."""


def _inside(name: str) -> str:
    if not name or PurePath(name).is_absolute() or ".." in PurePath(name).parts or "\0" in name:
        raise UserError(f"names a file outside its folder, {name!r}, which no run does")
    return name


Inside = Annotated[str, AfterValidator(_inside)]


class Versions(Record):
    clip_ood: Text = Field("another version", alias="clip-ood")


class Formatted(Record):
    """The keys that every version's manifest has."""

    format: int
    versions: Versions = Versions()


class Closed(Record):
    """A record to which no version adds keys, so that an unknown key is refused."""

    model_config = ConfigDict(extra="forbid")


class Spec(Closed):
    """The keys of a `clip_ood.backbones.spec.EncoderSpec`."""

    library: Literal[tuple(LIBRARIES)]
    model: Text
    pretrained: Text | None = None
    preprocess: Text | None = None
    random_seed: int = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    pooling: Literal["default", "cls", "mean", "cls+mean", "map"] = "default"
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None


class Encoder(Closed):
    """The keys of a `clip_ood.detect.saved_encoder.Encoder`."""

    spec: Spec
    fingerprint: dict[str, Any]
    features: Dtype
    autocast: Dtype | None = None
    in_folder: bool = False


class Texts(Closed):
    """The encoder of texts that some detector or test-time method asks while it scores."""

    spec: Spec
    fingerprint: dict[str, Any]


class Chosen(Closed):
    """The keys of a `clip_ood.calibration.Choice`."""

    candidates: Annotated[int, Field(ge=1, le=1_000_000)]
    auroc: Share
    images: Count | None


class Kept(Record):
    """The keys of a saved detector."""

    column: Text
    spec: dict[str, Any]
    notes: list[Text]
    choice: Chosen | None = None
    calibrated_by: By = "split"


class LeftOut(Record):
    detector: Text
    reason: Text


class Predicts(Record):
    """The keys of a `clip_ood.class_predictions.ClassPredictor`."""

    by: Predictor
    accuracy: dict[Predictor, Share]
    images: Count

    @model_validator(mode="after")
    def _says_how_good(self) -> Predicts:
        if self.by not in self.accuracy:
            raise UserError(f"does not say how often {self.by} is right")
        return self


class Calibrated(Record):
    n: Count


class Recalibrated(Record):
    """When, on how many images, and on which, thresholds were set anew without fitting; `before` is the digest of the manifest before."""

    time: Text
    images: Count
    gathered: Gathered
    paths: list[Text]
    left_out: dict[Text, Count]
    before: Text


class Manifest(Formatted):
    """The keys of a manifest of this version; width is that of features that were given, which no encoder tells."""

    batch_size: Annotated[int, Field(ge=1, lt=2**31)]
    encoder: Encoder
    texts: Texts | None = None
    width: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    class_names: list[Text] | None
    logit_scale: float | None
    logit_bias: float | None = None
    words: dict[Text, list[Text]] = Field(default_factory=dict)
    detectors: list[Kept]
    omitted: list[LeftOut]
    predictor: Predicts | None = None
    accept: Annotated[float, Field(gt=0, lt=1)]
    calibration: Calibrated | None
    recalibrated: Recalibrated | None = None
    doubles: list[Text] = Field(default_factory=list)
    files: dict[Inside, str]

    @model_validator(mode="after")
    def _agrees(self) -> Manifest:
        columns = [each.column for each in self.detectors]
        if twice := sorted({name for name in columns if columns.count(name) > 1}):
            raise UserError(f"names the detector {twice[0]!r} twice")
        if any(not isinstance(each.spec.get("name"), str) for each in self.detectors):
            raise UserError("names no kind of a detector")
        if (self.encoder.spec.library == "given") != (self.width is not None):
            raise UserError("says the width of features that were given, or has an encoder, and not one of both")
        return self


def find_folder(place: Path) -> Path:
    """Returns the detector's folder of a run, or `place` itself if it is such a folder.

    Raises: DetectorFolderError for anything else, with what to do.
    """
    for folder in (place / FOLDER, place):
        if (folder / MANIFEST).is_file():
            return folder
    if not place.is_dir():
        raise DetectorFolderError(f"There is no run or detector folder {place}")
    if seeds := sorted(place.glob(f"seed-*/{FOLDER}/{MANIFEST}")):
        raise DetectorFolderError(f"{place} has a run for each of several seeds: name one, {seeds[0].parents[1]}")
    raise DetectorFolderError(
        f"{place} holds no detector ({FOLDER}/{MANIFEST}): it is no finished run, or was made with evaluation.save_detector="
        "false; train.py or eval.py --run writes one"
    )


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns a manifest with the digest of its own content."""
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return content | {"digest": digest(content)}


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads a manifest. Raises: DetectorFolderError if it is damaged, changed, of another version or no `Manifest`."""
    try:
        manifest = read_record(path, Formatted)
    except Damaged as error:
        raise DetectorFolderError(f"{error}; copy the folder again") from error
    if manifest["format"] not in READ:
        made = manifest.get("versions", {}).get("clip-ood", "another version")
        raise DetectorFolderError(
            f"{path} is of format {manifest['format']} (clip-ood {made}), and this version reads format {FORMAT}: use that "
            "version, or run the experiment again"
        )
    if sealed(manifest)["digest"] != manifest.get("digest"):
        raise DetectorFolderError(f"{path} was changed after it was saved; copy the folder again")
    try:
        return fitting(manifest, Manifest)
    except Unfit as error:
        raise DetectorFolderError(f"{path} is none that a run writes: {error}. Do not use it") from error
