"""Makes test-time methods from what a config or a command asks for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch

from clip_ood.detectors.build import check_parameters
from clip_ood.detectors.names import Spec
from clip_ood.errors import UserError
from clip_ood.outputs import NegativeLabels, Reference
from clip_ood.stream.adaptive import AdaptiveDetector
from clip_ood.stream.names import read_methods

WORDS = "negative words: set data.negative_words (wordnet), with an encoder of texts and named classes"
NEEDS = {
    "text_embeddings": "text embeddings of the classes: it takes an encoder of texts and named classes",
    "logit_scale": "the logit scale of an encoder of texts",
    "neglabel": WORDS,
    "eoe": WORDS,
    "text_tower": "an encoder of texts, which it asks while it scores",
    "class_images": "mean images of the classes: label the ID training images, and name it in the run's evaluation.stream.methods",
}


def method_class(spec: Spec) -> type[AdaptiveDetector]:
    """Returns the class of a method. Raises UserError for parameters that it does not have."""
    module, name = spec.target.split(":")
    cls = getattr(import_module(module), name)
    check_parameters(spec, cls)
    return cls


def make(spec: Spec, reference: Reference) -> AdaptiveDetector:
    """Makes a method with an empty memory. Raises UserError for a parameter out of range, and if the reference lacks what it needs."""
    cls = method_class(spec)
    lacking = [name for name in cls.requires if getattr(reference, name) is None]
    check_has(spec, lacking)
    return cls(reference, **spec.parameters)


def check_values(spec: Spec) -> None:
    """Raises UserError for a parameter out of range, before there is any image or text: the method is made of two made-up classes."""
    texts = torch.eye(2)
    words = NegativeLabels(texts, texts)
    known = {"class_images": texts, "text_tower": lambda: None}  # which no method asks before it scores
    make(spec, Reference(("a", "b"), texts, logit_scale=1.0, neglabel=words, eoe=words, **known))


def check_has(spec: Spec, lacking: Collection[str], key: str | None = None) -> None:
    """Raises UserError if a method needs one of the `lacking` fields of a Reference."""
    missing = [name for name in method_class(spec).requires if name in lacking]
    if missing:
        why = "; ".join(dict.fromkeys(NEEDS[name] for name in missing))
        raise UserError(f"{f'{key}: ' if key else ''}{spec.name} needs {why}; or leave it out")


def required_by(methods: Sequence[str | Mapping[str, Any]]) -> set[str]:
    """Returns the fields of a Reference that methods need. Raises as `read_methods` and `method_class` do."""
    return {field for spec in read_methods(methods) for field in method_class(spec).requires}
