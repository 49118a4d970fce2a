"""Every key of a config: type, default, meaning. The text under a key is what `--help` prints.

Nothing heavy is imported here: a wrong key is answered before torch is loaded.
"""

from __future__ import annotations

from os.path import expanduser
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Place = Annotated[Path, AfterValidator(lambda path: Path(expanduser(path)))]  # the shell leaves --key=~/… as it is


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        coerce_numbers_to_str=True,  # --name=2024
    )


class ImageSet(Section):
    """One set of images: exactly one of `folder`, `list`, `torchvision`. A bare path means `folder`."""

    folder: Place | None = None
    """Folder of images: one sub-folder a class, or all images in one (flat). Relative to data.root."""
    list: Place | None = None
    """OpenOOD-style text file, a line "relative/path label" an image (-1: no label). Relative to data.root."""
    images_root: Place = Path()
    """With `list`: the folder that its paths start from. Relative to data.root."""
    torchvision: Literal["CIFAR10", "CIFAR100"] | None = None
    """A data set that torchvision downloads into data.root."""
    split: Literal["train", "test"] = "test"
    """With `torchvision`: which part."""
    per_class: Positive | None = None
    """Keep a seeded draw of this many images a class (default: all images)."""
    group: str = "ood"
    """OOD sets: the group that the table shows them in (near, far, …)."""
    source: str = ""
    """Where to get the images: shown when the folder is missing."""

    @model_validator(mode="after")
    def _one_place(self) -> ImageSet:
        named = [key for key in ("folder", "list", "torchvision") if getattr(self, key) is not None]
        if len(named) != 1:
            raise ValueError(f"needs exactly one of folder, list, torchvision; got {named or 'none'}")
        return self


def _folder_shorthand(value: Any) -> Any:
    return {"folder": value} if isinstance(value, str | Path) else value


Images = Annotated[ImageSet, BeforeValidator(_folder_shorthand)]


class IDSet(Section):
    """The in-distribution images: `images`, split by data.splits, or `train` and `test` as published."""

    images: Images | None = None
    """All ID images; data.splits divides them into train, val and test, stratified by class and seeded."""
    train: Images | None = None
    """Training images of a set with a split of its own; data.splits.val of them are held out as val."""
    val: Images | None = None
    """Held-out images of a set with a split of its own (default: drawn from train)."""
    test: Images | None = None
    """Test images of a set with a split of its own."""
    class_names: list[str] | Place | Literal["imagenet"] | None = None
    """Names for the prompts, in label order: a list, a text file (a name a line, relative to data.root), or
    `imagenet` (open_clip's 1000 distinct names). Default: the folders' names, underscores as spaces."""

    @model_validator(mode="after")
    def _one_way(self) -> IDSet:
        if (self.images is None) == (self.train is None and self.test is None):
            raise ValueError("needs either images (split by data.splits) or train and test")
        if self.images is None and (self.train is None or self.test is None):
            raise ValueError("needs both train and test")
        if self.images is not None and self.val is not None:
            raise ValueError(
                "val comes from data.splits when `images` is given; name train and test as well, or drop val"
            )
        return self


def _images_shorthand(value: Any) -> Any:
    return {"images": value} if isinstance(value, str | Path) else value


class Splits(Section):
    """Shares of the ID images; what is left after val and test is train."""

    val: Fraction = 0.2
    """Held out for thresholds and choices, never trained on."""
    test: Fraction = 0.3
    """Scored in the table; used only where the ID set has no test images of its own."""

    @model_validator(mode="after")
    def _leaves_train(self) -> Splits:
        if self.val + self.test >= 1:
            raise ValueError(
                f"val + test = {self.val + self.test:g} leaves no training images; both must sum to below 1"
            )
        return self


class Data(Section):
    """Where the images are."""

    root: Place = Path("data")
    """Folder that relative paths of image sets start from."""
    id: Annotated[IDSet, BeforeValidator(_images_shorthand)]
    """The in-distribution images. A bare path means `images`."""
    csid: dict[str, Images] = {}
    """Covariate-shifted ID sets by name: positives of the full_spectrum setting, absent from the standard one."""
    ood: dict[str, Images] = {}
    """OOD sets by name; {} is allowed: scores, no AUROC."""
    splits: Splits = Splits()
    """How ID images are divided where the set has no split of its own."""
    prompts: list[str] = Field(
        default=[
            "a photo of a {}.",
            "a blurry photo of a {}.",
            "a photo of many {}.",
            "a photo of the large {}.",
            "a photo of the small {}.",
        ],
        min_length=1,
    )
    """Templates for the text encoder; {} stands for the class name. Their embeddings are averaged."""
    batch_size: Positive = 256
    """Images a forward pass and device in feature extraction."""
    num_workers: int | None = Field(default=None, ge=0)
    """Processes that decode images, a device (default: 8 at most with a GPU, none without)."""
    max_unreadable: Fraction = 0.01
    """Largest share of a set's images that may be unreadable before the run stops."""

    @model_validator(mode="after")
    def _placeholders(self) -> Data:
        if wrong := [prompt for prompt in self.prompts if prompt.count("{}") != 1]:
            raise ValueError(f"prompts: {wrong[0]!r} must hold {{}} once, where the class name goes")
        if twice := sorted(
            {"id_test", "bank"} & (self.ood.keys() | self.csid.keys()) | self.ood.keys() & self.csid.keys()
        ):
            raise ValueError(f"set names must be distinct, and neither bank nor id_test: {', '.join(twice)}")
        return self


class BackboneConfig(Section):
    """The image(-text) encoder."""

    library: Literal["open_clip", "timm"] = "open_clip"
    """open_clip: image and text; timm: images only."""
    model: str
    """Architecture (ViT-bigG-14, convnext_base_w, …), hf-hub:ORG/REPO, or local-dir:FOLDER; for timm its model name."""
    pretrained: str | None = None
    """open_clip: a pretrained tag (laion2b_s39b_b160k) or a checkpoint file. timm: a file, or `default` for the
    model's own weights. null: random weights drawn from random_seed."""
    preprocess: str | None = None
    """With an open_clip checkpoint file: the pretrained tag whose mean, std, resizing and activation it was trained
    with; the file itself does not say."""
    random_seed: int = 0
    """Seed of random weights (pretrained: null)."""
    label: str | None = None
    """What tables call the encoder (default: its model and weights)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the encoder's weights and activations. Features are stored as float16 unless this is fp32."""


class ZeroShot(Section):
    """The encoder as it is: nothing is trained."""


class LinearProbe(Section):
    """One linear layer on standardised features g, cross-entropy, Adam; warm-up over the first 10 % of steps, then
    cosine to 0; the last step is kept."""

    epochs: Positive = 100
    """Passes over the training features."""
    batch_size: Positive = 256
    """Global batch, over all devices (8192 for ImageNet)."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate for a batch of 256; scaled by batch_size / 256."""
    weight_decay: float = Field(default=1e-3, ge=0)
    """Adam's L2 penalty."""
    per_class: Positive | None = None
    """Few-shot: train on a seeded draw of this many images a (pseudo-)class (default: all)."""


class PLP(LinearProbe):
    """Pseudo-label probing: a linear probe on labels that the text encoder gives."""

    min_confidence: Fraction = 0.9
    """Images whose pseudo-probability is below this are left out (0: none is)."""


class FineTune(Section):
    """The whole image tower and a linear head on g, cross-entropy, AdamW with smaller steps for earlier layers; linear
    warm-up, then cosine; the averaged weights of the last step are kept. Nothing is chosen on test or OOD images."""

    epochs: Positive = 30
    """Passes over the training images."""
    batch_size: Positive = 256
    """Global batch of an optimizer step, over all devices and accumulated batches. Must divide by both."""
    lr: float = Field(default=1e-4, gt=0)
    """Learning rate of the head for a batch of 256; scaled by batch_size / 256."""
    layer_decay: float = Field(default=0.75, gt=0, le=1)
    """Factor of the learning rate from each block of the image tower to the one below it (1: the same for all)."""
    weight_decay: float = Field(default=0.05, ge=0)
    """AdamW's, for matrices; vectors (biases, norms, tokens) have none."""
    warmup_epochs: float = Field(default=3, ge=0)
    """Epochs in which the learning rate rises."""
    warmup_lr: float = Field(default=1e-6, ge=0)
    """Where the rise starts (scaled as lr)."""
    final_lr: float = Field(default=1e-6, ge=0)
    """Where the cosine ends (scaled as lr)."""
    label_smoothing: Fraction = 0.1
    """Share of the target that is spread over all classes."""
    mixup: float = Field(default=0.8, ge=0)
    """α of mixup (0: off). With cutmix too, each batch gets one of them."""
    cutmix: float = Field(default=1.0, ge=0)
    """α of cutmix (0: off)."""
    augment: str | None = "rand-m9-mstd0.5-inc1"
    """timm's RandAugment string (null: off)."""
    random_erasing: Fraction = 0.25
    """Probability that a patch of an image is erased."""
    min_crop: float = Field(default=0.35, gt=0, le=1)
    """Smallest share of an image that a training crop shows."""
    flip: Fraction = 0.5
    """Probability that a training image is mirrored."""
    normalise: Literal["model", "imagenet"] = "model"
    """Mean and standard deviation of pixels: the model's own, or (the published run's fault) ImageNet's for any model."""
    ema: Fraction | None = 0.1
    """Weights are averaged over about this share of the run's steps: decay = 1 − 1 / (ema · steps). null: not at all."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """The decay itself; then `ema` has no say."""
    ema_longer_than_run: bool = False
    """Allow an ema_decay that remembers more steps than the run has, so that initial weights stay in the average."""
    clip_gradient: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient (null: any)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: much less memory, about a third more time."""
    compile: bool = False
    """torch.compile the image tower: minutes at the start, then faster."""
    head: str = "random"
    """How the head starts: random; text (prototypes of the class names); or the folder of a finished linear_probe or plp
    run (LP-FT)."""

    @model_validator(mode="after")
    def _consistent(self) -> FineTune:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs = {self.warmup_epochs:g} leaves nothing of {self.epochs} epochs; lower it")
        return self

    def averaging(self, steps: int) -> float | None:
        """The EMA's decay for a run of so many optimizer steps; None for no averaging.

        Raises: ValueError for a decay that remembers more steps than there are, unless that is asked for.
        """
        if self.ema_decay is None:
            return None if not self.ema else max(0.0, 1 - 1 / max(self.ema * steps, 1))
        if 1 / (1 - self.ema_decay) > steps and not self.ema_longer_than_run:
            raise ValueError(
                f"method.finetune.ema_decay = {self.ema_decay:g} averages over {1 / (1 - self.ema_decay):.0f} steps, and "
                f"the run has {steps}: {100 * self.ema_decay**steps:.0f} % of the result would be the initial weights. "
                "Leave ema_decay out (ema is a share of the run), or set ema_longer_than_run"
            )
        return self.ema_decay


class Method(Section):
    """What is trained: exactly one of the keys below, an empty value ({}) takes its defaults."""

    zero_shot: ZeroShot | None = None
    """Nothing: scores of the encoder itself."""
    linear_probe: LinearProbe | None = None
    """A linear head on true labels."""
    plp: PLP | None = None
    """A linear head on pseudo-labels: needs class names, no labels."""
    finetune: FineTune | None = None
    """The whole encoder and a head on true labels."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Method:
        if len(self.model_fields_set) != 1:
            names = ", ".join(type(self).model_fields)
            raise ValueError(f"needs exactly one of {names}; got {', '.join(sorted(self.model_fields_set)) or 'none'}")
        return self

    @property
    def name(self) -> str:
        return next(iter(self.model_fields_set))

    @property
    def settings(self) -> ZeroShot | LinearProbe | PLP | FineTune:
        return getattr(self, self.name)


class Evaluation(Section):
    """What the table is made of."""

    bank_per_class: Positive | None = None
    """Fit detectors on a seeded draw of this many training images a class (default: all; the results say so)."""
    resamples: int = Field(default=500, ge=0)
    """Bootstrap resamples for the intervals, shared by all detectors (0: no intervals)."""
    every_n_epochs: int = Field(default=0, ge=0)
    """Evaluate while training as well, every n epochs (0: only at the end). For looking, never for choosing."""
    figures: bool = True
    """Score histograms and ROC / PR curves in TensorBoard."""
    batch_size: Positive = 4096
    """Stored features scored at a time."""


class Config(Section):
    """One experiment."""

    name: str
    """The run's folder under runs_root (default: the config's file name)."""
    runs_root: Place = Path("runs")
    """Folder of all runs."""
    features_root: Place = Path("features")
    """The feature store, shared by all runs."""
    seed: int = 42
    """Seeds splits, draws, heads and resamples."""
    seeds: list[int] = []
    """Several seeds: one run each, in sub-folders, and a table of their mean ± standard deviation (on the command line
    also --seeds 42 43 44). Each redraws the split; features come from the store."""
    data: Data
    """The image sets: a block (benchmarks/…yaml) or keys."""
    backbone: BackboneConfig
    """The encoder: a block (backbones/…yaml) or keys."""
    method: Method
    """zero_shot, linear_probe, plp or finetune."""
    detectors: list[str | dict[str, Any]] | None = None
    """Scores to compute: names, {name: knn, k: 50}, or dotted paths to classes of yours (default: all the model supports)."""
    evaluation: Evaluation = Evaluation()
    """What the table is made of."""
    trainer: dict[str, Any] = {}
    """Keys of Lightning's Trainer (accelerator, devices, num_nodes, strategy, precision, …)."""

    @model_validator(mode="after")
    def _seeds_differ(self) -> Config:
        if twice := sorted({seed for seed in self.seeds if self.seeds.count(seed) > 1}):
            raise ValueError(f"seeds: {twice[0]} stands there twice; each must be another draw")
        return self
