"""Tries detectors before anything long begins: their parameters and, on a few made-up images, a user's own ones."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_ood.detectors.build import load_class
from clip_ood.detectors.detector import Detector, WrongScores
from clip_ood.detectors.names import DETECTORS, ZOO, Spec, read_specs
from clip_ood.errors import UserError
from clip_ood.outputs import NegativeLabels, Outputs, Reference, TextTower

IMAGES = 11  # that are tried: no width or number of classes below, so that their axis is not taken for another
PLAIN = (AttributeError, NameError, TypeError, KeyError, ImportError, NotImplementedError)  # at any width


def try_parameters(specs: Sequence[str | Mapping[str, Any]] | None) -> None:
    """Makes every detector of this project. Raises: ValueError for a parameter that is out of range."""
    _, reference = _made_up(3, 16, 8)
    for spec in read_specs(specs):
        if spec.name in DETECTORS:
            detector = load_class(spec)(reference, **spec.own_parameters)
            if spec.layer is not None:
                detector.on(spec.layer)


def try_own(
    specs: Sequence[str | Mapping[str, Any]] | None, classes: int | None, widths: tuple[int, int] | None = None
) -> None:
    """Makes, fits and calls every detector that is not part of this project, once, on made-up images.

    classes: the run's number of classes; widths: D of features and E of embeddings, if they are known. If they are not, the
    widths alone may be what a detector objects to; then only what is wrong at any width is an error.
    Raises: ValueError that names the class, what it did and what was expected.
    """
    own = [spec for spec in read_specs(specs) if spec.name not in DETECTORS and not spec.name.startswith(ZOO)]
    for spec in own:
        with torch.random.fork_rng(devices=[]):
            _try(spec, *_made_up(classes or 3, *(widths or (16, 8))), widths is not None)


def _try(spec: Spec, outputs: Outputs, reference: Reference, certain: bool) -> None:
    cls = load_class(spec)
    try:
        detector = cls(reference, **spec.parameters)
        detector.update(outputs)
        detector.fit()
        scores = detector.score(outputs)
        alone = detector.score(outputs.map(lambda value: value[:1]))
    except WrongScores as error:
        raise UserError(f"detectors: {spec.name}: {error}") from None
    except Exception as error:  # a user's code may raise anything
        if certain or isinstance(error, PLAIN):
            told = f"{type(error).__name__}{f': {error}' if str(error) else ''}"
            raise UserError(f"detectors: {spec.name} failed on made-up images: {told}{_place(error, cls)}") from error
        return
    if not scores.isfinite().any():
        raise UserError(
            f"detectors: {spec.name}: {cls.__name__}._score returned {scores[0].item()} for all of {len(scores)} made-up "
            "images, expected finite scores"
        )
    spread = (scores - scores.mean()).abs().max()
    if (scores[0] - alone[0]).abs() > 0.01 * spread + 1e-5 * scores[0].abs():
        raise UserError(
            f"detectors: {spec.name}: {cls.__name__}._score returned {alone[0]:.6g} for an image alone and {scores[0]:.6g} for "
            "it among others, expected the same: a score must not depend on what else is in a batch (dim=0 mixes images)"
        )


def _made_up(classes: int, width: int, joint: int) -> tuple[Outputs, Reference]:
    """Makes Outputs of a few images and a Reference with all that a run may have; features are positive, as after a ReLU."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    features, text = random(IMAGES, width).abs() + 0.1, normalize(random(classes, joint), dim=1)
    weight, bias, negatives = random(classes, width), random(classes), normalize(random(2 * IMAGES, joint), dim=1)
    labels = torch.arange(IMAGES) % classes
    tokens = {kind: normalize(random(IMAGES, 4, joint), dim=2) for kind in ("value", "output")}
    outputs = Outputs(
        features,
        normalize(random(IMAGES, joint), dim=1),
        features @ weight.T + bias,
        labels,
        torch.arange(IMAGES),
        tokens=tokens,
    )
    names, words = (
        tuple(f"{what} {number}" for number in range(n)) for what, n in (("class", classes), ("word", 2 * IMAGES))
    )
    labels = NegativeLabels(text, negatives, words)
    known = Reference(names, text, 100.0, weight, bias, labels, labels, -10.0, labels, labels)
    return outputs, replace(known, projection=random(width + 1, joint), text_tower=_no_tower)


def _no_tower() -> TextTower:
    raise UserError("a made-up run has no text encoder")


def _place(error: Exception, cls: type[Detector]) -> str:
    """Returns where in the file of a class an error arose."""
    file = inspect.getsourcefile(cls)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({file}, line {lines[-1]})" if lines else ""
