"""Detectors of the package pytorch-ood in the same table, named as `pytorch_ood.NCI`.

These detectors are neither computed batch by batch nor distributed. One that learns keeps the features or logits of all ID
training images, N · D floats, gathers those of all processes in each process, and is fitted on them at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from difflib import get_close_matches
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from clip_ood.detectors.detector import Detector
from clip_ood.detectors.exchange import Exchange
from clip_ood.detectors.names import ZOO
from clip_ood.detectors.statistic import Statistic
from clip_ood.errors import UserError
from clip_ood.outputs import Outputs, Reference

UNUSED = ("model", "encoder")  # would turn images into features or logits, which are already computed
FROM_REFERENCE = {  # their argument -> the fields of Reference that it is made of
    "head": ("weight", "bias"),
    "w": ("weight",),
    "b": ("bias",),
    "text_embeddings": ("text_embeddings",),
}


class Kept(Statistic):
    """All rows of one field of Outputs with their labels, in the order of processes."""

    def __init__(self, field: str) -> None:
        super().__init__()
        self.field = field
        self.values: list[Tensor] = []
        self.labels: list[Tensor] = []

    def key(self) -> Hashable:
        return type(self), self.field

    def _update(self, rows: Outputs) -> None:
        self.values.append(getattr(rows, self.field))
        self.labels.append(rows.labels)

    def _join(self, exchange: Exchange) -> None:
        self.values, self.labels = (exchange.gather(torch.cat(parts)) for parts in (self.values, self.labels))


class Peer(Detector):
    """A detector of pytorch-ood, whose score has its sign changed because it is higher for OOD.

    A subclass made by `adapt` names the detector. Those arguments of its constructor that come from a model are taken from the
    Reference (the head, its weight w and bias b, the text embeddings); all others are parameters. Raises ValueError for training
    images that the detector refuses, and for scores that are not finite.
    """

    portable: ClassVar[bool] = False
    theirs: ClassVar[type]
    field: ClassVar[str]

    def __init__(self, reference: Reference | None = None, **parameters: Any) -> None:
        super().__init__(reference)
        self.peer = self.theirs(**parameters, **self._given())
        if self.theirs.requires_fit:
            self.kept = Kept(self.field)

    def _given(self) -> dict[str, Any]:
        wanted = inspect.signature(self.theirs).parameters
        given: dict[str, Any] = {name: None for name in UNUSED if name in wanted}
        weight, bias, text = (getattr(self.reference, name) for name in ("weight", "bias", "text_embeddings"))
        if "head" in wanted:
            given["head"] = nn.Linear(weight.shape[1], len(weight), device="meta")
            given["head"].weight, given["head"].bias = (
                nn.Parameter(value.detach().float().cpu(), requires_grad=False) for value in (weight, bias)
            )
        known = {"w": weight, "b": bias, "text_embeddings": text}
        return given | {name: value.detach().float().cpu() for name, value in known.items() if name in wanted}

    def _fit(self) -> None:
        values, labels = torch.cat(self.kept.values).float().cpu(), torch.cat(self.kept.labels).cpu()
        fit = self.peer.fit_logits if self.field == "logits" else self.peer.fit_features
        try:
            fit(values, labels)
        except (ValueError, RuntimeError, IndexError) as error:
            raise self._error(f"{self.theirs.__name__} of pytorch-ood cannot be fitted: {error}") from error

    def score(self, outputs: Outputs) -> Tensor:
        scores = super().score(outputs)
        if not scores.isfinite().all():
            raise self._error("pytorch-ood gives scores that are not finite; leave it out, or change its parameters")
        return scores

    def traceable(self) -> Callable[[Outputs], Tensor]:
        raise self._error("runs pytorch-ood's own code, which no graph can hold; score it in Python")

    def _score(self, rows: Outputs) -> Tensor:
        values = getattr(rows, self.field).float().cpu()
        if not len(values):
            return torch.zeros(0)
        predict = self.peer.predict_logits if self.field == "logits" else self.peer.predict_features
        return -predict(values)


def adapt(name: str) -> type[Peer]:
    """Returns our detector class for `pytorch_ood.<name>`.

    Raises ValueError if pytorch-ood is not installed, has no such detector, or if that detector needs more than features or
    logits: images, gradients, or maps of features.
    """
    try:
        package = import_module("pytorch_ood.detector")
        api = import_module("pytorch_ood.api")
    except ModuleNotFoundError as error:
        raise UserError(f"detectors: {name}: {error.name} is not installed: pip install 'clip-ood[zoo]'") from error
    bases = {api.LogitsDetector: "logits", api.FeaturesDetector: "features"}
    known = {key: value for key, value in vars(package).items() if inspect.isclass(value)}
    usable = [key for key, value in known.items() if issubclass(value, tuple(bases))]
    short = name.removeprefix(ZOO)
    if short not in known:
        nearest = get_close_matches(short, usable, n=3) or sorted(usable)
        raise UserError(f"detectors: pytorch-ood has no detector {short!r}; nearest: {', '.join(nearest)}")
    theirs = known[short]
    field = next((field for base, field in bases.items() if issubclass(theirs, base)), None)
    if field is None:
        raise UserError(
            f"detectors: {name} works on images, gradients or maps of features, and detectors here see features and logits "
            f"alone; those that can be taken: {', '.join(sorted(usable))}"
        )
    wanted = [
        each for key, fields in FROM_REFERENCE.items() if key in inspect.signature(theirs).parameters for each in fields
    ]
    if "text_embeddings" in wanted:
        field = "embeddings"
    requires = (field, *wanted, *(("labels",) if theirs.requires_fit else ()))
    about = {"name": name, "theirs": theirs, "field": field, "requires": requires}
    return type(short, (Peer,), {**about, "__signature__": _own_parameters(theirs)})


def _own_parameters(theirs: type) -> inspect.Signature:
    """Returns the parameters that a config gives: a reference, as for any detector, and those that do not come from a model."""
    parameters = inspect.signature(theirs).parameters.values()
    own = [parameter for parameter in parameters if parameter.name not in (*UNUSED, *FROM_REFERENCE)]
    first = inspect.Parameter("reference", inspect.Parameter.POSITIONAL_ONLY)
    return inspect.Signature([first, *own])
