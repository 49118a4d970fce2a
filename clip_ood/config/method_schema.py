"""The keys of `method`: what is trained, and how. `--help` prints the text under a key."""

from __future__ import annotations

from collections import Counter
from itertools import product
from math import prod
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from clip_ood.config.section import Count, Decay, Fraction, Positive, Rate, Section
from clip_ood.config.yaml_text import says_none
from clip_ood.errors import UserError

MOST_HEADS = 10_000  # of a sweep
MOST_VECTORS = (
    10_000  # of a context: no text tower reads as many tokens, and a prompt of millions takes minutes to find that out
)


class Settings(Section):
    """The keys of one method, what it needs, and what it changes."""

    trains: ClassVar[bool] = False  # something is trained, which needs two classes or more
    trains_head: ClassVar[bool] = False  # a linear head on features is trained
    gives_logits: ClassVar[bool] = False  # by that head, or another
    learns_negatives: ClassVar[bool] = False  # the detector negprompt can run
    needs_labels: ClassVar[bool] = False
    needs_text: ClassVar[bool] = False  # an encoder of texts is needed
    tunes_encoder: ClassVar[bool] = False  # the method trains on images, not on stored features
    patches: ClassVar[str | None] = None  # the kind of patch tokens of training images that it learns from


class ZeroShot(Settings):
    """The encoder is used as it is; nothing is trained."""


class TipAdapter(Settings):
    """Tip-Adapter: nothing is trained. The logits of the class names get votes of a few labelled training images:
    z = s ⟨h, t⟩ + α Σ exp(−β (1 − ⟨h, f⟩)) over the embeddings f of the images of a class."""

    gives_logits, needs_labels, needs_text = True, True, True

    per_class: Positive | None = 16
    """Number of images of each class that vote, a seeded draw (null: all training images). It is the draw of linear_probe."""
    alpha: Decay = 1.0
    """Weight α of the votes beside the logits of the class names."""
    beta: Decay = 5.5
    """Sharpness β: the larger, the nearer an image must be for its vote to count."""


class Training(Settings):
    """The keys of a method that trains."""

    trains, trains_head, gives_logits, needs_labels = True, True, True, True

    epochs: Positive
    """Number of passes over the training images."""
    batch_size: Positive = 256
    """Number of images in an optimizer step, over all devices together."""


class ProbeGrid(Section):
    """Settings to try: every combination of the listed values makes a head, and all heads are trained in one pass. The run keeps
    the head with the highest accuracy on ID val; of equal ones, it keeps the one with the lower NLL."""

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
        """Returns the values of each key that lists any."""
        return {key: values for key in type(self).model_fields if (values := getattr(self, key)) is not None}


class PLPGrid(ProbeGrid):
    """Settings to try, as in a linear probe's sweep. PLP's heads are judged by val's pseudo-labels above the lowest min_confidence;
    true labels are not used."""

    min_confidence: list[Fraction] | None = Field(default=None, min_length=1)
    """Thresholds (default: the method's own). All heads see the images above the lowest threshold; a head's loss is the mean over
    those images of a batch that are above its own threshold."""


class LinearProbe(Training):
    """One linear layer on standardised features g is trained by Adam with cross-entropy. The learning rate rises over the first
    10 % of steps, then falls to 0 by a cosine. The weights after the last step are kept."""

    epochs: Positive = 100
    """Number of passes over the training features."""
    batch_size: Positive = 256
    """Number of images in an optimizer step, over all devices together (8192 for ImageNet)."""
    lr: Rate = 1e-3
    """Learning rate for a batch of 256; it is scaled by batch_size / 256."""
    weight_decay: Decay = 1e-3
    """Adam's L2 penalty."""
    per_class: Positive | None = None
    """Few-shot training: train on a seeded draw of this many images of each (pseudo-)class (default: all)."""
    sweep: ProbeGrid | None = None
    """Train many heads in one pass and keep the one that is best on ID val (default: one head)."""

    def candidates(self) -> list[LinearProbe]:
        """Returns the settings of every head of the sweep, with thresholds varying fastest. Without a sweep, these are its only ones."""
        listed = self.sweep.listed() if self.sweep else {}
        return [
            self.model_copy(update={"sweep": None} | dict(zip(listed, values, strict=True)))
            for values in product(*listed.values())
        ]


class PLP(LinearProbe):
    """Pseudo-label probing: a linear probe is trained on labels that the text encoder predicts."""

    needs_labels, needs_text = False, True

    min_confidence: Fraction = 0.9
    """Images whose pseudo-label has a probability below this are left out (0: none is left out)."""
    targets: Literal["hard", "soft"] = "hard"
    """What the head learns of an image that passes min_confidence: its most probable class (hard), or the text encoder's probabilities of all
    classes (soft). Detectors learn classes from the most probable ones in either case."""
    drawn: Literal["at_random", "by_confidence"] = "at_random"
    """Which images of each pseudo-class per_class takes: a seeded draw, or those with the largest pseudo-probability (by_confidence), a filter
    that treats all classes alike, however sure the text encoder is of them. Detectors learn classes from all images above min_confidence."""
    sweep: PLPGrid | None = None
    """Train many heads in one pass and keep the one that agrees best with the pseudo-labels of ID val (default: one)."""

    @model_validator(mode="after")
    def _sweeps_labels(self) -> PLP:
        if self.targets == "soft" and self.sweep is not None:
            raise UserError(
                "targets: soft takes no sweep, whose heads share labels: leave the sweep out, or take targets: hard"
            )
        return self

    @model_validator(mode="after")
    def _draws_some(self) -> PLP:
        if self.drawn == "by_confidence" and self.per_class is None:
            raise UserError("drawn: by_confidence goes with per_class, the number of images of each pseudo-class")
        return self


class CoOp(Training):
    """Context optimisation (CoOp): vectors in the place of the words around each class name are learnt by SGD with cross-entropy of
    s ⟨h, t⟩ on stored embeddings. The text tower is run in every step, and the image tower not at all. mcm and the other scores of texts
    then use the learnt prompts."""

    trains_head, gives_logits, needs_text = False, False, True

    epochs: Positive = 50
    """Number of passes over the training images. CoOp's authors take 50 for 1 image of each class, 100 for 2 and 4, 200 for 8 and 16, and
    50 for ImageNet."""
    batch_size: Positive = 32
    """Number of images in an optimizer step; with several devices, each runs the text tower for its share of the classes."""
    lr: Rate = 2e-3
    """Learning rate, which is not scaled by the batch size."""
    weight_decay: Decay = 5e-4
    """SGD's L2 penalty."""
    warmup_epochs: Count = 1
    """Number of epochs at the rate warmup_lr, after which the rate falls from lr by a cosine, epoch by epoch."""
    warmup_lr: Rate = 1e-5
    """Learning rate of the first epochs."""
    per_class: Positive | None = None
    """Few-shot training: train on a seeded draw of this many images of each class (default: all). It is the draw of linear_probe."""
    context: Annotated[Positive, Field(le=MOST_VECTORS)] = 16
    """Number of vectors that are learnt. A few encoders read 32 tokens, of which names need some."""
    start: str | None = None
    """Words from whose token embeddings the context starts, as "a photo of a", in place of `context` random vectors."""
    class_position: Literal["end", "middle", "front"] = "end"
    """Where the class name stands among the vectors."""
    class_specific: bool = False
    """Learn a context for each class, in place of one for all classes."""


class LoCoOp(CoOp):
    """CoOp with local regularisation (LoCoOp): parts of an image that do not show its class are made to look like no class. It needs an
    encoder whose patches lie in the joint space. Patches of the images that it learns from are stored, which are all without
    per_class: an image takes 0.2 MB with ViT-B/16."""

    patches = "value"

    weight: Decay = 0.25
    """Weight λ of the regularisation beside CoOp's cross-entropy."""
    rank: Positive = 200
    """A part of an image shows its class if that is among so many of the most probable ones. It must be below the number of classes; the
    paper takes 200 of ImageNet's 1000."""


class NegPrompt(CoOp):
    """Negative prompts (NegPrompt): contexts whose prompts become negatives of each class are learnt on stored embeddings, while the
    classes' own embeddings stay as they are. The detector negprompt uses both; it must be named in detectors."""

    learns_negatives = True

    epochs: Positive = 15
    """Number of passes over the training images."""
    batch_size: Positive = 64
    """Number of images in an optimizer step; with several devices, each runs the text tower for its share of the classes."""
    lr: Rate = 1e-2
    """Learning rate, which is not scaled by the batch size. With the momentum of 0.9 a step is as long as that of the authors, who take
    0.1 without momentum."""
    start: str | None = "a photo of a"
    """Words from whose token embeddings the contexts start (null: `context` random vectors)."""
    positives: str = "text"
    """The embeddings of the classes: text (those of data.prompts), or the folder of a finished coop run, whose learnt prompts are
    taken, and from whose context the negative ones start, as the authors do."""
    negatives: Positive = 2
    """Number of negative prompts of each class."""
    distance_weight: Decay = 0.1
    """Weight of the distance of negatives from the class that they belong to."""
    diversity_weight: Decay = 0.05
    """Weight of the distance of a class's negatives from each other."""


class FineTune(Training):
    """The whole image tower and a linear head on g are trained by AdamW with cross-entropy and smaller steps for earlier layers.
    The learning rate rises linearly, then falls by a cosine. The averaged weights after the last step are kept. Nothing is chosen on
    test or OOD images."""

    tunes_encoder = True

    epochs: Positive = 30
    """Number of passes over the training images."""
    batch_size: Positive = 256
    """Number of images in an optimizer step, over all devices and accumulated batches; it must be divisible by both."""
    lr: float = Field(default=1e-4, gt=0)
    """Learning rate of the head for a batch of 256; it is scaled by batch_size / 256."""
    layer_decay: float = Field(default=0.75, gt=0, le=1)
    """Factor of the learning rate from each block of the image tower to the one below it (1: the same for all)."""
    weight_decay: float = Field(default=0.05, ge=0)
    """AdamW's weight decay of matrices; vectors (biases, norms, tokens) have none."""
    warmup_epochs: float = Field(default=3, ge=0)
    """Number of epochs in which the learning rate rises."""
    warmup_lr: float = Field(default=1e-6, ge=0)
    """Learning rate at which the rise starts (scaled as lr is)."""
    final_lr: float = Field(default=1e-6, ge=0)
    """Learning rate at which the cosine ends (scaled as lr is)."""
    label_smoothing: Fraction = 0.1
    """Share of the target that is spread over all classes."""
    mixup: float = Field(default=0.8, ge=0)
    """α of mixup (0: off). If cutmix is on too, each batch gets one of the two."""
    cutmix: float = Field(default=1.0, ge=0)
    """α of cutmix (0: off)."""
    augment: str | None = "rand-m9-mstd0.5-inc1"
    """RandAugment string of timm (null: off)."""
    random_erasing: Fraction = 0.25
    """Probability that a patch of an image is erased."""
    min_crop: float = Field(default=0.35, gt=0, le=1)
    """Smallest share of an image that a training crop shows."""
    flip: Fraction = 0.5
    """Probability that a training image is mirrored."""
    normalise: Literal["model", "imagenet"] = "model"
    """Mean and standard deviation by which pixels are normalised: the model's own, or ImageNet's for any model, which was a fault of
    the published run."""
    ema: Fraction | None = 0.1
    """Weights are averaged over about this share of the run's steps: decay = 1 − 1 / (ema · steps). null averages nothing."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """The decay of the averaging itself; it replaces `ema`."""
    ema_longer_than_run: bool = False
    """Allow an ema_decay that remembers more steps than the run has, so that initial weights stay in the average."""
    clip_gradient: float | None = Field(default=1.0, gt=0)
    """Norm to which a larger gradient is clipped (null: no clipping)."""
    freeze_batch_norm: bool = False
    """Keep the running statistics of BatchNorm layers, which is right for small batches. Transformers have no such layers."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, which takes much less memory and about a third more time."""
    compile: bool = False
    """Compile the image tower by torch.compile, which takes minutes at the start and is faster afterwards."""
    head: str = "random"
    """Initial weights of the head: random; text (prototypes of the class names); or the folder of a finished linear_probe or plp
    run (LP-FT)."""

    @model_validator(mode="after")
    def _consistent(self) -> FineTune:
        if self.warmup_epochs >= self.epochs:
            raise UserError(f"warmup_epochs = {self.warmup_epochs:g} leaves nothing of {self.epochs} epochs; lower it")
        return self

    def averaging(self, steps: int) -> float | None:
        """Returns the EMA's decay for a run of this many optimizer steps, or None for no averaging.

        Raises ValueError for a decay that remembers more steps than there are, unless the settings allow it.
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
    """The method, given by exactly one of the keys below. An empty value ({}) takes the method's defaults."""

    zero_shot: ZeroShot | None = None
    """Trains nothing; the encoder itself gives the scores."""
    linear_probe: LinearProbe | None = None
    """Trains a linear head on true labels."""
    tip_adapter: TipAdapter | None = None
    """Trains nothing; a few labelled images vote beside the class names (Tip-Adapter)."""
    plp: PLP | None = None
    """Trains a linear head on pseudo-labels; it needs class names but no labels."""
    coop: CoOp | None = None
    """Learns the context of the class names' prompts on true labels (CoOp)."""
    locoop: LoCoOp | None = None
    """Learns the context as coop does, and that parts of an image which do not show its class look like no class (LoCoOp)."""
    negprompt: NegPrompt | None = None
    """Learns negative prompts of the classes on true labels (NegPrompt)."""
    finetune: FineTune | None = None
    """Trains the whole image encoder and a head on true labels."""

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
