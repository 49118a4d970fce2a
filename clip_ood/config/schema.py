"""The type, default and meaning of every key of a config. `--help` prints the text under a key."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from clip_ood.backbones.library import LIBRARIES, library
from clip_ood.config.data_schema import Data, IDSet, ImageSet, Splits
from clip_ood.config.method_schema import PLP, FineTune, LinearProbe, Method, ZeroShot
from clip_ood.config.section import Count, Place, Positive, Root, Section, Seed, Untyped
from clip_ood.config.yaml_text import as_yaml, says_none
from clip_ood.errors import UserError

__all__ = [
    "PLP",
    "BackboneConfig",
    "Config",
    "Data",
    "Evaluation",
    "FineTune",
    "IDSet",
    "ImageSet",
    "LinearProbe",
    "Method",
    "Section",
    "Splits",
    "ZeroShot",
]


class TextTower(Section):
    """The text tower of another open_clip model of the same joint space."""

    model: str
    """Its architecture, as a name, hf-hub:ORG/REPO or local-dir:FOLDER."""
    pretrained: str | None = None
    """Its pretrained tag or checkpoint file."""


class BackboneConfig(Section):
    """The image(-text) encoder."""

    library: Literal[tuple(LIBRARIES)] = "open_clip"
    """open_clip: image and text; timm: images only; transformers: image and text, or images only, as the model has them (pip install
    'clip-ood[transformers]'); own: a module of your own, whose code is run; given: none, because the features are given (data.….features)."""
    model: str
    """Architecture (ViT-bigG-14, convnext_base_w, …), hf-hub:ORG/REPO or local-dir:FOLDER; for timm, the model's name; for transformers,
    ORG/REPO on the Hugging Face hub or local-dir:FOLDER; for own, a function or class, my_package.my_module:make, that gives an
    nn.Module with a transform; for given, any name of what the features are of."""
    pretrained: str | None = None
    """Weights. open_clip takes a pretrained tag (laion2b_s39b_b160k) or a checkpoint file; timm and
    transformers take a file, or `default` for the model's own weights; own takes a file, or null if the code brings weights. Files are read as their authors publish them, and only as data. null draws random weights by random_seed."""
    preprocess: str | None = None
    """Goes with an open_clip checkpoint file: the pretrained tag whose mean, std, resizing and activation the file was trained
    with, because the file itself does not say."""
    random_seed: Seed = 0
    """Seed of random weights (pretrained: null)."""
    label: str | None = None
    """Name of the encoder in tables (default: its model and weights)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the encoder's weights and activations. Features are stored as float16 unless this is fp32."""
    pooling: Literal["default", "cls", "mean", "cls+mean", "map"] = "default"
    """What g is made of in an encoder of timm that gives a token for each patch: as it was trained (default); the class token (cls); the
    mean of the patch tokens (mean); both, one after the other (cls+mean); or its attention pooling (map). timm pools DINOv3 by mean, and
    DINOv2 by cls. open_clip's models keep their own: embeddings are made of it."""
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    """Side of the images in pixels, for an encoder that can take another than its own: position embeddings are interpolated (default: the
    size that the model was made for)."""
    text: TextTower | None = None
    """Text tower of another model, which reads prompts and words. It must have been trained against this image tower, as
    xlm-roberta-large-ViT-H-14 was against ViT-H-14. Image features stay the same (default: the model's own text tower)."""

    @property
    def reads_text(self) -> bool:
        """Says whether images and texts have a joint space."""
        return library(self.library).reads_texts(self)

    @property
    def text_spec(self) -> BackboneConfig | None:
        """Returns the model that `text` names as an encoder of its own, or None."""
        if self.text is None:
            return None
        return BackboneConfig(model=self.text.model, pretrained=self.text.pretrained, precision=self.precision)


def _detector(given: Any) -> Any:
    if isinstance(given, str):
        return given
    if not isinstance(given, dict):
        raise UserError("a detector is a name, or keys as {name: knn, k: 10}")
    parameters = as_yaml(given)  # no schema of ours knows them
    names = {key: str(given[key]) for key in ("name", "as") if isinstance(given.get(key), str)}
    return parameters | {key: name for key, name in names.items() if not says_none(given[key])}


Detector = Annotated[str | dict[str, Any], BeforeValidator(_detector)]


class Stream(Section):
    """Test-time methods, which learn from the very images that they score. ID test images and one OOD set at a time are shuffled together."""

    methods: list[Detector] = Field(default=["adaneg", "oodd", "clipscope"], min_length=1, max_length=100)
    """Names or {name: oodd, size: 512}; `as: …` names a row of the table. adaneg and clipscope need data.negative_words."""
    orders: Annotated[int, Field(ge=1, le=1000)] = 5
    """How many orders each stream is scored in. Order j of 0, 1, … is drawn with the seed `seed` + j."""
    batch_size: Positive = 64
    """Images that are scored at a time; scores of adaneg and oodd depend on it."""
    ood_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of OOD images in a stream, for which images are drawn anew for each order (default: all images of both sets)."""


class Evaluation(Section):
    """How detectors are fitted and scored, and what is written."""

    bank_per_class: Positive | None = None
    """Fit detectors on a seeded draw of this many training images of each class (default: all). The results mention it."""
    bank_without: Place | None = None
    """A text file of ID training images that detectors are not fitted on: one path on each line, written as in scores.parquet
    (default: none)."""
    resamples: int | None = Field(default=None, ge=0, le=100_000)
    """Has no effect any more: intervals need no resamples. Configs of earlier versions have it."""
    every_n_epochs: Count = 0
    """Score all sets during training as well, every n epochs (0: only at the end). Loss and accuracy on ID val are measured after
    every epoch in any case. Callbacks may monitor val/loss, val/accuracy and ood_val/<detector>/<metric> (data.ood_val); they may not
    monitor what is measured on test sets, ood/… and id/…."""
    figures: bool = True
    """Draw score histograms and ROC / PR curves for TensorBoard, or for the logger that trainer.logger names."""
    report: bool = True
    """Write report.html into the run's folder: tables, charts and the images that were judged wrongly, in one file."""
    batch_size: Positive = 4096
    """Number of stored features that are scored at a time."""
    leaks: Literal["exact", "near"] = "exact"
    """Which copies are sought between the sets and within each set: exact copies, which are equal byte for byte, or also near copies,
    which were resized, saved anew or mirrored (those within the training set only with cross_fit). Near copies take a search like that of k-NN, and some images are decoded again; a method
    that tunes the encoder first encodes all images with the encoder as it was. The run's leaks.csv names all copies that are found."""
    cross_fit: Annotated[int, Field(ge=2, le=100)] | None = None
    """Score every ID training image, too, by detectors that have not seen it: neighbours are sought among all other images, and what is
    fitted, heads as well, is fitted on all but one of this many folds, which is scored. Copies never vouch for each other. Then the ID
    set may have no val and test images (data.splits: {val: 0, test: 0}). The scores stand in scores.parquet under train, and
    suspects.csv ranks the images. A fine-tuned encoder has seen all images, so that finetune is refused (default: null, none are)."""
    hold_out_classes: Annotated[int, Field(ge=2, le=10)] | None = None
    """Which detector is best, if there are no OOD images? Divide the classes into this many groups, hold out each of them once, fit method
    and detectors on the other classes, and let the images of the group play OOD images. The results name the AUROC of each detector and
    group. It takes four classes (default: null, no class is held out)."""
    stream: Stream | None = None
    """Score the test images as a stream, too, by methods that learn from it: {methods: [adaneg, oodd]}, or {} for the defaults. Their
    figures stand in a table of their own, stream.csv, and never beside those of detectors (default: null, no stream)."""
    accept: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Share of new ID images that the run's thresholds accept. Thresholds are calibrated on ID val; detect.py --accept changes it."""
    save_detector: bool = True
    """Write detector/, by which detect.py judges new images, into the run's folder. With k-NN it holds the bank."""
    with_encoder: bool = False
    """Put the encoder's weights into detector/ too, so that it needs nothing else (fine-tuned weights are always there)."""


class Config(Section):
    """One experiment."""

    name: str
    """Name of the run's folder under runs_root (default: the config's file name). A folder must be able to have it on any system."""
    runs_root: Root = Path("runs")
    """Folder that holds all runs."""
    features_root: Root = Path("features")
    """The feature store, shared by all runs."""
    seed: Seed = 42
    """Seed of splits, draws and heads."""
    seeds: list[Seed] = Field(default=[], max_length=1000)
    """Several seeds (on the command line also --seeds 42 43 44). Each seed has a run in a sub-folder, and a table shows their
    mean ± standard deviation with 95 % intervals. Each seed redraws the split, unless train and test are as published; features come
    from the store."""
    timeout: Annotated[float, Field(gt=0, le=10**7)] = 1800
    """Seconds that a run waits for an image to be read, and for its other processes. After that it ends and says what it waited for."""
    data: Data
    """The image sets: a block (benchmarks/…yaml) or keys."""
    backbone: BackboneConfig
    """The encoder: a block (backbones/…yaml) or keys."""
    method: Method
    """What is trained: zero_shot, tip_adapter, linear_probe, plp, coop, locoop, negprompt or finetune."""
    detectors: list[Detector] | None = None
    """Scores to compute: names, {name: knn, k: 50}, or dotted paths to your own classes (default: all that the model supports)."""
    evaluation: Evaluation = Evaluation()
    """How detectors are fitted and scored, and what is written."""
    trainer: Untyped = {}
    """Keys of Lightning's Trainer: accelerator, devices, num_nodes, strategy, precision, gradient_clip_val, deterministic, … Keys that
    would cut a run short (max_steps, limit_…_batches, fast_dev_run) are refused. `logger` takes tensorboard (default), csv, wandb,
    mlflow, false, a class, or a list of these. `callbacks` takes a list of classes. A class is written as
    {class_path: my_module.Mine, init_args: {…}}."""

    @model_validator(mode="after")
    def _encoder_lies_somewhere(self) -> Config:
        if self.evaluation.with_encoder and not self.evaluation.save_detector:
            raise UserError("evaluation: with_encoder puts the weights into detector/, and save_detector is false")
        return self

    @model_validator(mode="after")
    def _encoder_has_not_seen_what_is_left_out(self) -> Config:
        for key in ("cross_fit", "hold_out_classes"):
            if getattr(self.evaluation, key) is not None and self.method.settings.tunes_encoder:
                raise UserError(
                    f"evaluation.{key} scores training images by what has not seen them, and method.{self.method.name} tunes the encoder "
                    f"on all of them: train a linear_probe or plp, or leave {key} out"
                )
        return self

    @model_validator(mode="after")
    def _scored_training_images_have_their_name(self) -> Config:
        if self.evaluation.cross_fit is not None and "train" in self.data.ood.keys() | self.data.csid.keys():
            raise UserError(
                "with evaluation.cross_fit, train is the set of the training images that are scored: rename yours"
            )
        return self

    @model_validator(mode="after")
    def _seeds_differ(self) -> Config:
        if twice := sorted(seed for seed, times in Counter(self.seeds).items() if times > 1):
            raise UserError(f"seeds: {twice[0]} stands there twice; each must be another draw")
        return self
