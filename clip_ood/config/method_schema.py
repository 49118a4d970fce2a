"""The keys of `method`: what is trained, and how. The text under a key is what `--help` prints."""

from __future__ import annotations

from collections import Counter
from itertools import product
from math import prod
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from clip_ood.config.section import Decay, Fraction, Positive, Rate, Section
from clip_ood.config.yaml_text import says_none
from clip_ood.errors import UserError

MOST_HEADS = 10_000  # of a sweep


class Settings(Section):
    """The keys of one method, and what the method is: what it needs, and what it changes."""

    trains: ClassVar[bool] = False  # a head, which needs two classes or more
    needs_labels: ClassVar[bool] = False
    needs_text: ClassVar[bool] = False  # an encoder of texts
    tunes_encoder: ClassVar[bool] = False  # and reads images, not stored features


class ZeroShot(Settings):
    """The encoder as it is: nothing is trained."""


class Training(Settings):
    """The keys of one method that trains."""

    trains, needs_labels = True, True

    epochs: Positive
    """Passes over the training images."""
    batch_size: Positive = 256
    """Global batch of an optimizer step, over all devices."""


class ProbeGrid(Section):
    """Settings to try: every combination of the values listed is a head, and all heads are trained in one pass. The
    head that is right on most of ID val is the run's (ties: the lower NLL)."""

    lr: list[Rate] | None = Field(default=None, min_length=1)
    """Learning rates (default: the method's own)."""
    weight_decay: list[Decay] | None = Field(default=None, min_length=1)
    """L2 penalties (default: the method's own)."""

    @model_validator(mode="after")
    def _values_differ(self) -> ProbeGrid:
        listed = self.listed()
        if (heads := prod(map(len, listed.values()))) > MOST_HEADS:
            raise UserError(f"its values make {heads:,} heads, and at most {MOST_HEADS:,} are trained in one pass")
        for key, values in listed.items():
            if twice := [value for value, times in Counter(values).items() if times > 1]:
                raise UserError(f"{key} lists {twice[0]:g} twice; each value must be another head")
        return self

    def listed(self) -> dict[str, list[float]]:
        """The values of each key that lists some."""
        return {key: values for key in type(self).model_fields if (values := getattr(self, key)) is not None}


class PLPGrid(ProbeGrid):
    """As a linear probe's sweep. PLP's heads are judged by val's pseudo-labels, those above the lowest min_confidence;
    true labels choose nothing."""

    min_confidence: list[Fraction] | None = Field(default=None, min_length=1)
    """Thresholds (default: the method's own). All heads see the images above the lowest; a head's loss is the mean over
    those of a batch that are above its own."""


class LinearProbe(Training):
    """One linear layer on standardised features g, cross-entropy, Adam; warm-up over the first 10 % of steps, then
    cosine to 0; the last step is kept."""

    epochs: Positive = 100
    """Passes over the training features."""
    batch_size: Positive = 256
    """Global batch, over all devices (8192 for ImageNet)."""
    lr: Rate = 1e-3
    """Learning rate for a batch of 256; scaled by batch_size / 256."""
    weight_decay: Decay = 1e-3
    """Adam's L2 penalty."""
    per_class: Positive | None = None
    """Few-shot: train on a seeded draw of this many images a (pseudo-)class (default: all)."""
    sweep: ProbeGrid | None = None
    """Train many heads in one pass and keep the one that is best on ID val (default: one head)."""

    def candidates(self) -> list[LinearProbe]:
        """The settings of every head of the sweep, thresholds varying fastest; these settings alone without one."""
        listed = self.sweep.listed() if self.sweep else {}
        return [
            self.model_copy(update={"sweep": None} | dict(zip(listed, values, strict=True)))
            for values in product(*listed.values())
        ]


class PLP(LinearProbe):
    """Pseudo-label probing: a linear probe on labels that the text encoder gives."""

    needs_labels, needs_text = False, True

    min_confidence: Fraction = 0.9
    """Images whose pseudo-probability is below this are left out (0: none is)."""
    sweep: PLPGrid | None = None
    """Train many heads in one pass and keep the one that agrees best with the pseudo-labels of ID val (default: one)."""


class FineTune(Training):
    """The whole image tower and a linear head on g, cross-entropy, AdamW with smaller steps for earlier layers; linear
    warm-up, then cosine; the averaged weights of the last step are kept. Nothing is chosen on test or OOD images."""

    tunes_encoder = True

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
    freeze_batch_norm: bool = False
    """BatchNorm layers keep their running statistics: right where batches are small. Transformers have none."""
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
            raise UserError(f"warmup_epochs = {self.warmup_epochs:g} leaves nothing of {self.epochs} epochs; lower it")
        return self

    def averaging(self, steps: int) -> float | None:
        """The EMA's decay for a run of so many optimizer steps; None for no averaging.

        Raises: ValueError for a decay that remembers more steps than there are, unless that is asked for.
        """
        if self.ema_decay is None:
            return None if not self.ema else max(0.0, 1 - 1 / max(self.ema * steps, 1))
        if round(1 / (1 - self.ema_decay)) > steps and not self.ema_longer_than_run:
            raise UserError(
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

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: {} if says_none(settings) else settings for name, settings in given.items()}

    @model_validator(mode="after")
    def _exactly_one(self) -> Method:
        if len(self.model_fields_set) != 1:
            names = ", ".join(type(self).model_fields)
            raise UserError(f"needs exactly one of {names}; got {', '.join(sorted(self.model_fields_set)) or 'none'}")
        return self

    @property
    def name(self) -> str:
        return next(iter(self.model_fields_set))

    @property
    def settings(self) -> Settings:
        return getattr(self, self.name)
