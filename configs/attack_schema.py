"""The keys of an attack: an experiment, which OOD images are moved where, and how its result is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from configs.section import Place, Positive, Section


class BudgetConfig(Section):
    """A ball around the image that the perturbation stays in."""

    norm: Literal["linf", "l2"]
    """linf: every pixel's change; l2: the length of all changes together."""
    epsilon: float = Field(gt=0)
    """Its radius; pixels are in [0, 1], so 8/255 = 0.0314 for eight grey levels."""


class Defence(Section):
    """What images go through before they are scored: one of the corruptions."""

    corruption: str
    """gaussian_blur, jpeg, pixelate (down and up again), …"""
    severity: int = Field(ge=1, le=5)
    """How much of it."""


class Curve(Section):
    """AUROC over the smoothness, on a few pairs."""

    pairs: Positive = 8
    """How many."""
    smoothness: list[float] = [0.0, 100.0, 5000.0]
    """Its values."""


class AttackConfig(Section):
    """OOD images moved onto ID features, and what every detector says of them."""

    name: str
    """The folder under runs_root (default: the file's name)."""
    runs_root: Place = Path("runs")
    """Folder of all runs."""
    config: str
    """The experiment whose detectors are attacked: a config's name or path. It is run first where it has to be."""
    changes: dict[str, Any] = {}
    """Keys of the experiment that are changed; `--key=value` on the command line does the same."""
    ood: str
    """The OOD set of the experiment that images are drawn from."""
    pairs: Positive = 1000
    """OOD images that are attacked, a seeded draw."""
    target: Literal["train", "nearest", "text"] = "train"
    """What an image is moved to: features g of a random ID training image, of the nearest one, or the nearest class's text
    embedding (with h)."""
    score: str | None = None
    """Raise this detector's score instead of matching features: PGD on mcm, msp, max_logit or energy."""
    steps: Positive = 250
    """Steps of the attack."""
    lr: float = Field(default=1e-3, gt=0)
    """Adam's learning rate; with sign the step itself."""
    smoothness: float = Field(default=5e3, ge=0)
    """λ of the roughness term: 5000 smooth, 0 patchy."""
    noise: float = Field(default=1e-3, ge=0)
    """Standard deviation of the first perturbation."""
    sign: bool = False
    """Step by the gradient's sign (PGD) instead of Adam."""
    budget: BudgetConfig | None = None
    """Largest perturbation (default: any with valid pixels)."""
    batch_size: Positive = 16
    """Images attacked at a time, a device."""
    defences: list[Defence] = []
    """Score through each of these as well."""
    transfer: dict[str, str] = {}
    """Name -> backbone block: encoders that score the images too, which were made on the experiment's own."""
    curve: Curve | None = None
    """Draw AUROC over the smoothness (default: not)."""

    @model_validator(mode="after")
    def _consistent(self) -> AttackConfig:
        if self.score is not None and self.score not in ("mcm", "msp", "max_logit", "energy"):
            raise ValueError(f"score: {self.score!r} gives no gradient here; take mcm, msp, max_logit or energy")
        return self
