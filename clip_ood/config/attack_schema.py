"""The keys of an attack: an experiment, which of its OOD images are moved where, and how the result is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from clip_ood.config.data_schema import CorruptionName
from clip_ood.config.schema import Config
from clip_ood.config.section import Decay, Place, Positive, Rate, Root, Section
from clip_ood.config.values import KeysOf
from clip_ood.errors import UserError

Severity = Annotated[int, Field(ge=1, le=5)]


class BudgetConfig(Section):
    """A ball around the image that the perturbation stays in."""

    norm: Literal["linf", "l2"]
    """linf: the largest change of a pixel; l2: the length of all changes together."""
    epsilon: Rate
    """Its radius; pixels are in [0, 1], so 8/255 = 0.0314 is eight grey levels."""


class Curve(Section):
    """AUROC over the steps and over the smoothness, on some of the pairs."""

    pairs: Positive = 8
    """How many."""
    smoothness: list[Decay] = [0.0, 100.0, 5000.0]
    """Values of λ, each an attack of its own."""


class AttackConfig(Section):
    """OOD images moved onto ID features, and what every detector says of them."""

    name: str
    """The folder under runs_root (default: the file's name)."""
    runs_root: Root = Path("runs")
    """Folder of all runs."""
    config: str
    """The experiment whose encoder and detectors are attacked (a config's name or path), or the folder of a finished run,
    whose head is then taken."""
    changes: Annotated[dict[str, Any], KeysOf(Config)] = {}
    """Keys of the experiment that are changed; `--key=value` on the command line does the same."""
    ood: str
    """The OOD set of the experiment that images are drawn from."""
    pairs: Positive = 1000
    """OOD images that are attacked, a seeded draw; each is moved to a target of its own draw."""
    target: Literal["train", "nearest", "text"] = "train"
    """Where to: the features g of a random ID training image, of the nearest one, or the text embedding of the nearest
    class (by h)."""
    score: str | None = None
    """Raise this score instead of matching features: one of the experiment's detectors, fitted on its bank."""
    steps: Positive = 250
    """Steps of the attack."""
    lr: Rate = 1e-3
    """Adam's learning rate; with `sign` the step itself."""
    smoothness: Decay = 5e3
    """λ of the roughness term: 5000 smooth, 0 patchy."""
    noise: Decay = 1e-3
    """Standard deviation of the first perturbation."""
    sign: bool = False
    """Step by the sign of the gradient (PGD) instead of Adam."""
    budget: BudgetConfig | None = None
    """The largest perturbation (default: any that leaves pixels valid)."""
    batch_size: Positive = 16
    """Images attacked at a time, a device."""
    images: Place | None = None
    """Where the images are saved, before/ and after/ (default: images/ in the run's folder)."""
    defences: dict[CorruptionName, Severity] = {}
    """Score everything once more through each of these, at a severity: {gaussian_blur: 1, jpeg: 1, pixelate: 1}."""
    transfer: dict[str, str] = {}
    """Name -> backbone block: encoders that score the images as well, which were made on the experiment's own."""
    curve: Curve | None = None
    """Draw AUROC over steps and smoothness (default: no)."""

    @model_validator(mode="after")
    def _consistent(self) -> AttackConfig:
        if self.score is not None and "target" in self.model_fields_set:
            raise UserError("score and target exclude each other: a score is raised, or features are matched")
        if self.curve is not None and self.curve.pairs > self.pairs:
            raise UserError(
                f"curve.pairs: {self.curve.pairs} images are to be attacked for the curve, and {self.pairs} in all (pairs): lower it, or "
                "leave the curve out (curve: null)"
            )
        return self
