"""The keys of an attack: the experiment, the OOD images that are perturbed, their targets, and what is measured."""

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
    """A ball around the image in which the perturbation stays."""

    norm: Literal["linf", "l2"]
    """linf bounds the largest change of a pixel; l2 bounds the length of all changes together."""
    epsilon: Rate
    """Radius of the ball. Pixels are in [0, 1], so 8/255 = 0.0314 is eight grey levels."""


class Curve(Section):
    """A figure of AUROC over the steps and over the smoothness, on some of the pairs."""

    pairs: Positive = 8
    """Number of pairs."""
    smoothness: list[Decay] = [0.0, 100.0, 5000.0]
    """Values of λ; there is an attack with each of them."""


class AttackConfig(Section):
    """OOD images are perturbed until their features are close to those of ID images, and every detector scores them."""

    name: str
    """Name of the folder under runs_root (default: the file's name)."""
    runs_root: Root = Path("runs")
    """Folder that holds all runs."""
    config: str
    """The experiment whose encoder and detectors are attacked: a config's name or path, or the folder of a finished run, whose
    head is then used."""
    changes: Annotated[dict[str, Any], KeysOf(Config)] = {}
    """Keys of the experiment that are changed; `--key=value` on the command line does the same."""
    ood: str
    """The experiment's OOD set from which images are drawn."""
    pairs: Positive = 1000
    """Number of OOD images that are attacked. They are a seeded draw, and a target is drawn for each."""
    target: Literal["train", "nearest", "text"] = "train"
    """Target that an image is moved to: the features g of a random ID training image, those of the nearest one, or the text
    embedding of the nearest class (by h)."""
    score: str | None = None
    """Raise this score instead of matching features. It is one of the experiment's detectors, fitted on its bank."""
    steps: Positive = 250
    """Number of steps of the attack."""
    lr: Rate = 1e-3
    """Learning rate of Adam; with `sign`, the size of a step."""
    smoothness: Decay = 5e3
    """Weight λ of the roughness term; 5000 makes smooth perturbations, 0 patchy ones."""
    noise: Decay = 1e-3
    """Standard deviation of the initial perturbation."""
    sign: bool = False
    """Step by the sign of the gradient (PGD) instead of Adam."""
    budget: BudgetConfig | None = None
    """Bound of the perturbation (default: any perturbation that leaves pixels valid)."""
    batch_size: Positive = 16
    """Number of images that each device attacks at a time."""
    images: Place | None = None
    """Folder in which images are saved, as before/ and after/ (default: images/ in the run's folder)."""
    defences: dict[CorruptionName, Severity] = {}
    """Score all images once more after each of these corruptions, at a severity: {gaussian_blur: 1, jpeg: 1, pixelate: 1}."""
    transfer: dict[str, str] = {}
    """Other encoders by which the images, made on the experiment's own encoder, are scored as well: name -> backbone block."""
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
