"""Makes detectors from a config's list, and gives the reasons why some cannot run."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from math import isfinite
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from clip_ood.detectors.detector import ONE_EACH, Detector
from clip_ood.detectors.names import DETECTORS, STREAM_METHODS, ZOO, Spec, read_specs
from clip_ood.dotted_paths import module_of
from clip_ood.errors import UserError
from clip_ood.outputs import Inside, Outputs, Reference

NEGATIVES = "needs negative labels: set data.negative_words (wordnet), with an encoder of texts and named classes"
NO_LINEAR_HEAD = "needs the weights of a linear head: this run trains none"
REASONS = {
    "features": "needs features before the joint projection: this run gives none",
    "embeddings": "needs embeddings in the joint space: this encoder has no text side",
    "logits": "needs logits: this run trains no head",
    "labels": "needs class labels of the ID training images",
    "class_names": "needs class names: this ID set has none",
    "text_embeddings": "needs text embeddings: the encoder has no text side or the ID set no class names",
    "logit_scale": "needs the model's logit scale: this encoder has none",
    "logit_bias": "needs the model's logit bias: this encoder has none, as its training had no sigmoid loss",
    "weight": NO_LINEAR_HEAD,
    "bias": NO_LINEAR_HEAD,
    "tokens": "needs tokens of the patches: this run's outputs have none",
    "neglabel": NEGATIVES,
    "csp": NEGATIVES,
    "eoe": "needs outlier classes: set data.negative_words (a list of names) and data.negative_choice=given, with an encoder of texts and "
    "named classes",
    "negprompt": "needs learnt negative prompts: train them (method.negprompt)",
    "projection": "needs the encoder's linear projection into the joint space: its encoder has none or another, or the run trained it",
    "text_tower": "needs a text encoder that reads new texts while it scores: this run has none",
    "class_images": "needs the mean images of the classes: only a run with the test-time method interneg has them",
}
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
ONE_CLASS = "needs two classes or more: with one, its score is the same for every image"


@dataclass(frozen=True)
class Omitted:
    """A detector that is left out of the results, and the reason in plain words."""

    detector: str
    reason: str


def build_detectors(
    specs: Sequence[str | Mapping[str, Any]] | None, reference: Reference, available: Collection[str]
) -> tuple[dict[str, Detector], list[Omitted]]:
    """Makes detectors by column name, and lists those that this run cannot serve.

    `specs` are as in `read_specs`; `available` names the fields of Outputs and Reference that the run has (features,
    embeddings, logits, labels, text_embeddings, …). Raises ValueError for an unknown name or parameter, a parameter
    out of range, two equal column names, and a class path that does not lead to a Detector.
    """
    detectors: dict[str, Detector] = {}
    omitted: list[Omitted] = []
    for spec in read_specs(specs):
        cls = load_class(spec)
        check_parameters(spec, cls)
        missing = [field for field in cls.requires if field not in available]
        if missing:
            omitted.append(Omitted(spec.label, _reasons(missing)))
        elif (count := _classes(reference)) is not None and count < cls.least_classes:
            omitted.append(Omitted(spec.label, ONE_CLASS))
        else:
            detector = cls(reference, **spec.own_parameters)
            detectors[spec.label] = detector if spec.layer is None else detector.on(spec.layer)
            detector.spec = {"name": spec.name, **spec.parameters}
    return detectors, omitted


def check_any_runs(specs: Sequence[str | Mapping[str, Any]] | None, lacking: Collection[str]) -> None:
    """Raises UserError if each requested detector needs one of the fields that a run cannot have, and as `build_detectors` does."""
    why = {}
    for spec in read_specs(specs):
        missing = [field for field in load_class(spec).requires if field in lacking]
        if not missing:
            return
        why[spec.label] = _reasons(missing)
    raise UserError(f"None of the detectors can run here. {'; '.join(f'{name}: {each}' for name, each in why.items())}")


def _reasons(missing: Sequence[str]) -> str:
    if "logits" in missing:  # which says it all
        missing = [field for field in missing if field not in ("weight", "bias")]
    return "; ".join(dict.fromkeys(REASONS.get(field, f"needs {field}: this run gives none") for field in missing))


def required(specs: Sequence[str | Mapping[str, Any]] | None) -> set[str]:
    """Returns the fields of Outputs and Reference that the requested detectors need; raises as `build_detectors` does."""
    fields: set[str] = set()
    for spec in read_specs(specs):
        cls = load_class(spec)
        check_parameters(spec, cls)
        fields.update(cls.requires)
    return fields


def inside(specs: Sequence[str | Mapping[str, Any]] | None, lacking: Collection[str] = ()) -> Inside:
    """Returns the layers and patch tokens of an encoder that the requested detectors need.

    Those that need a field which the run is `lacking` are not counted. Raises as `build_detectors` does.
    """
    wanted = Inside()
    for spec in read_specs(specs):
        cls = load_class(spec)
        if not set(lacking).isdisjoint(cls.requires):
            continue
        tokens = (spec.parameters.get("tokens", cls.tokens),) if "tokens" in cls.requires else ()
        wanted |= Inside(() if spec.layer is None else tuple(spec.layer.split("+")), tokens)
    return wanted


def patched(specs: Sequence[str | Mapping[str, Any]] | None, rows: Tensor) -> Tensor:
    """Returns of which ID training images, by their indices (n,), the requested detectors learn patch tokens; raises as `build_detectors` does."""
    learnt = [rows[:0]]
    for spec in read_specs(specs):
        cls = load_class(spec)
        if cls.learns_tokens:
            cls(None, **spec.own_parameters)  # raises for parameters that it cannot have
            learnt.append(cls.patched(rows, **spec.own_parameters))
    return torch.cat(learnt).unique()


def _classes(reference: Reference) -> int | None:
    known = (reference.weight, reference.text_embeddings, reference.class_names)
    return next((len(value) for value in known if value is not None), None)


def load_class(spec: Spec) -> type[Detector]:
    """Returns the class that an entry names.

    Raises ValueError for a path that leads to no class, or to an incomplete detector.
    """
    if spec.name.startswith(ZOO):
        from clip_ood.detectors.zoo import adapt

        return adapt(spec.name)
    module, name = module_of(spec.target.replace(":", "."), f"detectors: {spec.name}")
    cls = getattr(module, name, None)
    if not (isinstance(cls, type) and issubclass(cls, Detector)):
        raise UserError(f"detectors: {spec.name}: expected a subclass of clip_ood.detectors.Detector, got {cls!r}")
    if cls._score is Detector._score:
        raise UserError(f"detectors: {spec.name}: {cls.__name__} has no _score(self, rows), which gives {ONE_EACH}")
    _check_requires(spec, cls)
    return cls


def _check_requires(spec: Spec, cls: type[Detector]) -> None:
    known = [each.name for kind in (Outputs, Reference) for each in fields(kind)]
    if isinstance(cls.requires, str) or not all(isinstance(field, str) for field in cls.requires):
        raise UserError(
            f"detectors: {spec.name}: {cls.__name__}.requires is {cls.requires!r}, expected a tuple of names, as ('features',)"
        )
    if unknown := [field for field in cls.requires if field not in known]:
        raise UserError(
            f"detectors: {spec.name}: {cls.__name__}.requires names {unknown[0]!r}, which no run gives; expected some of "
            f"{', '.join(known)}"
        )


def check_parameters(spec: Spec, cls: type) -> None:
    """Raises UserError for a parameter that a class does not have, lacks a value of, or, if the class is ours, has one of another type of."""
    parameters = list(inspect.signature(cls).parameters.values())[1:]  # the first is the reference
    _check_layer(spec, cls)
    single = [
        parameter for parameter in parameters if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    for parameter in single:
        if parameter.default is parameter.empty and parameter.name not in spec.parameters:
            raise UserError(f"{spec.name}: needs a parameter: {{name: {spec.name}, {parameter.name}: …}}")
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    valid = [parameter.name for parameter in parameters]
    for key in spec.own_parameters:
        if key not in valid:
            nearest = get_close_matches(str(key), valid, n=1)
            hint = f"; nearest: {nearest[0]}" if nearest else ""
            raise UserError(f"{spec.name}: unknown parameter {key!r}, expected {', '.join(valid) or 'none'}{hint}")
    if spec.name in DETECTORS or spec.name in STREAM_METHODS:
        _check_types(spec, cls)


def _check_layer(spec: Spec, cls: type) -> None:
    """Raises ValueError for a layer that is none, and for a class to which a layer means nothing."""
    if spec.layer is None:
        if getattr(cls, "needs_layer", False):
            raise UserError(
                f"{spec.name}: needs the layers that it may take beside the last: {{name: {spec.name}, layer: 3+6+9}}"
            )
        return
    needed = getattr(cls, "requires", ())
    names = spec.layer.split("+")
    if not all(re.fullmatch("[1-9][0-9]{0,5}", name) for name in names):
        raise UserError(
            f"{spec.name}: layer = {spec.layer}, expected the number of a layer (6), or several whose features are taken together (4+8)"
        )
    if len(set(names)) < len(names):
        raise UserError(f"{spec.name}: layer = {spec.layer} names a layer twice")
    if "features" not in needed or not {"weight", "bias", "logits"}.isdisjoint(needed):
        raise UserError(
            f"{spec.name}: layer = {spec.layer}, and it takes no features of a layer: it works on "
            f"{' and '.join(field for field in needed if field != 'labels')}"
        )


def _check_types(spec: Spec, cls: type) -> None:
    """Raises ValueError for a value of another type than the detector declares."""
    declared = get_type_hints(cls.__init__)
    for key, value in spec.own_parameters.items():
        kinds = get_args(declared[key]) or (declared[key],)
        fits = type(value) in kinds or (float in kinds and type(value) is int and value < 2**53)
        if not fits or (isinstance(value, float) and not isfinite(value)):
            raise UserError(f"{spec.name}: {key} = {value}, expected {WORDS[float if float in kinds else kinds[0]]}")
