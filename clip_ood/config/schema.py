"""Every key of a config: type, default, meaning. The text under a key is what `--help` prints."""

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
    """Its architecture, hf-hub:ORG/REPO or local-dir:FOLDER."""
    pretrained: str | None = None
    """Its pretrained tag or checkpoint file."""


class BackboneConfig(Section):
    """The image(-text) encoder."""

    library: Literal[tuple(LIBRARIES)] = "open_clip"
    """open_clip: image and text; timm: images only."""
    model: str
    """Architecture (ViT-bigG-14, convnext_base_w, …), hf-hub:ORG/REPO, or local-dir:FOLDER; for timm its model name."""
    pretrained: str | None = None
    """open_clip: a pretrained tag (laion2b_s39b_b160k) or a checkpoint file. timm: a file, or `default` for the
    model's own weights. Files are read as their authors publish them, as data. null: random weights drawn from random_seed."""
    preprocess: str | None = None
    """With an open_clip checkpoint file: the pretrained tag whose mean, std, resizing and activation it was trained
    with; the file itself does not say."""
    random_seed: Seed = 0
    """Seed of random weights (pretrained: null)."""
    label: str | None = None
    """What tables call the encoder (default: its model and weights)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the encoder's weights and activations. Features are stored as float16 unless this is fp32."""
    text: TextTower | None = None
    """Reads prompts and words with the text tower of another model, as one that was trained against this image tower
    (xlm-roberta-large-ViT-H-14 against ViT-H-14). Image features stay the same (default: the model's own)."""

    @property
    def reads_text(self) -> bool:
        """Whether images and texts have a joint space."""
        return library(self.library).reads_text

    @property
    def text_spec(self) -> BackboneConfig | None:
        """The model that `text` names, as an encoder of its own."""
        if self.text is None:
            return None
        return BackboneConfig(model=self.text.model, pretrained=self.text.pretrained, precision=self.precision)


class Evaluation(Section):
    """What the table is made of."""

    bank_per_class: Positive | None = None
    """Fit detectors on a seeded draw of this many training images a class (default: all; the results say so)."""
    bank_without: Place | None = None
    """A text file of ID training images that detectors are not fitted on, a path a line as in scores.parquet (default: none)."""
    resamples: int = Field(default=500, ge=0, le=100_000)
    """Bootstrap resamples for the intervals, shared by all detectors (0: no intervals)."""
    every_n_epochs: Count = 0
    """Score all sets while training as well, every n epochs (0: only at the end); loss and accuracy on ID val are measured after
    every epoch in any case. Callbacks may choose by val/loss, val/accuracy and ood_val/<detector>/<metric> (data.ood_val); what is
    measured on test sets, ood/… and id/…, is for looking only."""
    figures: bool = True
    """Score histograms and ROC / PR curves for TensorBoard, or what trainer.logger names instead."""
    report: bool = True
    """report.html in the run's folder: tables, charts and the images that were judged wrongly, in one file."""
    batch_size: Positive = 4096
    """Stored features scored at a time."""
    leaks: Literal["exact", "near"] = "exact"
    """Which copies are sought between the sets, and within each: exact ones, equal byte for byte, or near ones as well, which were
    resized, saved anew or mirrored. That takes a search as of k-NN, and decodes some images again; a method that tunes the encoder
    encodes all images once more for it. All that are found are in leaks.csv of the run."""
    accept: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Share of new ID images that the run's thresholds accept, calibrated on ID val (detect.py --accept changes it)."""
    save_detector: bool = True
    """Write detector/ into the run's folder: what detect.py judges new images with. With k-NN it holds the bank."""
    with_encoder: bool = False
    """Let detector/ hold the encoder's weights too, so that it needs nothing else (fine-tuned ones always lie there)."""


def _detector(given: Any) -> Any:
    if isinstance(given, str):
        return given
    if not isinstance(given, dict):
        raise UserError("a detector is a name, or keys as {name: knn, k: 10}")
    parameters = as_yaml(given)  # no schema of ours knows them
    names = {key: str(given[key]) for key in ("name", "as") if isinstance(given.get(key), str)}
    return parameters | {key: name for key, name in names.items() if not says_none(given[key])}


Detector = Annotated[str | dict[str, Any], BeforeValidator(_detector)]


class Config(Section):
    """One experiment."""

    name: str
    """The run's folder under runs_root (default: the config's file name): a name that a folder may have on any system."""
    runs_root: Root = Path("runs")
    """Folder of all runs."""
    features_root: Root = Path("features")
    """The feature store, shared by all runs."""
    seed: Seed = 42
    """Seeds splits, draws, heads and resamples."""
    seeds: list[Seed] = Field(default=[], max_length=1000)
    """Several seeds: one run each, in sub-folders, and a table of their mean ± standard deviation, with 95 % intervals (on the
    command line also --seeds 42 43 44). Each redraws the split, unless train and test are as published; features come from
    the store."""
    timeout: Annotated[float, Field(gt=0, le=10**7)] = 1800
    """Seconds that a run waits for an image that is being read, and for its other processes, before it ends and says what it waited
    for."""
    data: Data
    """The image sets: a block (benchmarks/…yaml) or keys."""
    backbone: BackboneConfig
    """The encoder: a block (backbones/…yaml) or keys."""
    method: Method
    """zero_shot, linear_probe, plp or finetune."""
    detectors: list[Detector] | None = None
    """Scores to compute: names, {name: knn, k: 50}, or dotted paths to classes of yours (default: all the model supports)."""
    evaluation: Evaluation = Evaluation()
    """What the table is made of."""
    trainer: Untyped = {}
    """Keys of Lightning's Trainer: accelerator, devices, num_nodes, strategy, precision, gradient_clip_val, deterministic, … What would
    cut a run short (max_steps, limit_…_batches, fast_dev_run) is refused. logger: tensorboard (default), csv, wandb, mlflow, false, a
    class, or a list of these; callbacks: a list of classes; a class is {class_path: my_module.Mine, init_args: {…}}."""

    @model_validator(mode="after")
    def _encoder_lies_somewhere(self) -> Config:
        if self.evaluation.with_encoder and not self.evaluation.save_detector:
            raise UserError("evaluation: with_encoder puts the weights into detector/, and save_detector is false")
        return self

    @model_validator(mode="after")
    def _seeds_differ(self) -> Config:
        if twice := sorted(seed for seed, times in Counter(self.seeds).items() if times > 1):
            raise UserError(f"seeds: {twice[0]} stands there twice; each must be another draw")
        return self
