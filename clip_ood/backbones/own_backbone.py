"""Makes a user's own nn.Module a `Backbone`, after its outputs were checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from math import isfinite, nan
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import Resize

from clip_ood.backbones.backbone import Backbone, Preprocessing, unit
from clip_ood.backbones.checkpoint_file import read_tensors
from clip_ood.backbones.own_library import found
from clip_ood.backbones.spec import BackboneSpec, ImageSpec
from clip_ood.errors import UserError, shortened

COLOURS = (
    (0, 0, 0),
    (255, 255, 255),
    (51, 153, 204),
)  # of even pictures: two tell mean and std, and the third checks them


class OwnBackbone(Backbone):
    """The module that the code at a dotted path makes: called with images (B, 3, H, W), it gives g (B, D).

    A method `project` turns g into vectors (B, E) of a joint space, `encode_text` a list of K texts into vectors (K, E) of it (both are
    put on the unit sphere here), and `logit_scale` is the s of softmax(s · cos(h, t)), a number. With random weights, they are drawn
    from the seed. Raises: UserError for a module without transform, and for outputs that are not (B, D) or not finite.
    """

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__(spec.precision)
        self.path, self.width = spec.model, None
        self.model, self.transform = made(spec.model, spec.random_seed)
        if spec.pretrained is not None:
            _load(self.model, Path(spec.pretrained))
        with torch.device("cpu"):  # where the encoder is made without memory, pictures have pixels
            self.preprocessing = preprocessing_of(self.transform, spec.model)
        self.has_text = not isinstance(spec, ImageSpec) and callable(getattr(self.model, "encode_text", None))
        self.freeze()
        if not next(iter(self.parameters()), torch.zeros(0)).is_meta:
            self._check()

    @property
    def logit_scale(self) -> float | None:
        return self._number("logit_scale")

    @property
    def logit_bias(self) -> float | None:
        return self._number("logit_bias")

    def _number(self, name: str) -> float | None:
        value = getattr(self.model, name, None) if self.has_text else None
        try:
            number = None if value is None else float(value)
        except (TypeError, ValueError, RuntimeError):
            number = nan
        if number is not None and (not isfinite(number) or (name == "logit_scale" and number <= 0)):
            expected = "a number above 0" if name == "logit_scale" else "a number"
            raise UserError(f"{self.path}: {name} is {shortened(repr(value))}, and must be {expected}")
        return number

    @property
    def image_tower(self) -> nn.Module:
        return self.model

    def encode_image(self, images: Tensor) -> Tensor:
        features = self.model(images.to(self.dtype))
        if not torch.compiler.is_compiling():
            _check_shape(features, len(images), f"{self.path}: of {len(images)} images, forward", self.width)
        return features.float()

    def project(self, features: Tensor) -> Tensor | None:
        if not callable(getattr(self.model, "project", None)):
            return None
        embeddings = self.model.project(features.to(self.dtype))
        if not torch.compiler.is_compiling():
            _check_shape(embeddings, len(features), f"{self.path}: of {len(features)} features, project")
        return unit(embeddings)

    def text_vectors(self, texts: list[str]) -> Tensor:
        if not self.has_text:
            return super().text_vectors(texts)
        vectors = self.model.encode_text(texts)
        _check_shape(vectors, len(texts), f"{self.path}: of {len(texts)} texts, encode_text")
        return vectors

    def train_images(self, gradient_checkpointing: bool = False, compile: bool = False) -> Backbone:
        self.has_text = False
        return super().train_images(gradient_checkpointing, compile)

    @torch.inference_mode()
    def _check(self) -> None:
        """Raises UserError for outputs that are not as the class tells."""
        pictures = torch.rand(2, 3, *self.preprocessing.size, generator=torch.Generator().manual_seed(0))
        features = self.encode_image(pictures)
        _check_finite(features, f"{self.path}: of 2 images, forward")
        self.width = features.shape[1]
        if not torch.equal(features, self.encode_image(pictures)):
            raise UserError(
                f"{self.path}: forward gives other values of the same images each time, and must not be random or change itself"
            )
        if (embeddings := self.project(features)) is not None:
            _check_finite(embeddings, f"{self.path}: of 2 features, project")
        if not self.has_text:
            return
        if embeddings is None:
            raise UserError(
                f"{self.path} has encode_text and no project, which brings images into the space of the texts"
            )
        _ = self.logit_scale, self.logit_bias  # each is a number
        texts = self.text_vectors(["a cat", "a dog", "a fox"])
        _check_finite(texts, f"{self.path}: of 3 texts, encode_text")
        if texts.shape[1] != embeddings.shape[1]:
            raise UserError(
                f"{self.path}: encode_text is {texts.shape[1]} wide, and project {embeddings.shape[1]}: they must be equal"
            )


def made(path: str, seed: int) -> tuple[nn.Module, Callable[[Image.Image], Tensor]]:
    """Calls the code at a dotted path with torch's generator at `seed`, and returns the module in evaluation mode and its transform.

    Raises: UserError for code that gives anything else; what the code itself raises.
    """
    target = found(path)
    _check_signature(target, path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        given = target()
    pair = given if isinstance(given, tuple) and len(given) == 2 else (given, getattr(given, "transform", None))
    module, transform = pair
    if not isinstance(module, nn.Module):
        raise UserError(
            f"{path} gives a {type(module).__name__}, and must give an nn.Module, or the pair (module, transform)"
        )
    if not callable(transform):
        raise UserError(
            f"{path} gives a module without a transform: set its attribute `transform`, which turns a PIL image into a (3, H, W) tensor, or "
            "give the pair (module, transform)"
        )
    return module.eval(), transform


def _check_signature(target: Callable[..., Any], path: str) -> None:
    try:
        signature = inspect.signature(target)
    except ValueError:  # of built-in code that tells none
        return
    try:
        signature.bind()
    except TypeError as error:
        raise UserError(
            f"{path} cannot be called without arguments ({error}): write a function that makes it with those that it takes, and name that"
        ) from error


def preprocessing_of(transform: Callable[[Image.Image], Tensor], path: str) -> Preprocessing:
    """Returns the size, and the mean and std of each channel by what a transform makes of even pictures.

    Raises: UserError for a transform that does not give (3, H, W) float32, is random, or does more to a colour than (x − mean) / std.
    """
    black, white, colour = (_prepared(transform, path, Image.new("RGB", (96, 80), each)) for each in COLOURS)
    std = 1 / (white - black).mean(dim=(1, 2))
    mean = -black.mean(dim=(1, 2)) * std
    expected = (torch.tensor(COLOURS[2]) / 255 - mean) / std
    even = all(
        torch.allclose(each, each.mean(dim=(1, 2), keepdim=True).expand_as(each), atol=1e-4)
        for each in (black, white, colour)
    )
    if not even or not torch.allclose(colour.mean(dim=(1, 2)), expected, rtol=1e-3, atol=1e-3):
        raise UserError(
            f"{path}: the transform does more to colours than (x − mean) / std of each channel of RGB, which clip-ood has to know for "
            "fine-tuning and export: do the rest (another order of channels, padding) in the module's forward"
        )
    steps = getattr(transform, "transforms", ())
    resize = next((step.interpolation.value for step in steps if isinstance(step, Resize)), "bilinear")
    return Preprocessing(tuple(black.shape[1:]), _figures(mean), _figures(std), resize)


def _prepared(transform: Callable[[Image.Image], Tensor], path: str, picture: Image.Image) -> Tensor:
    result = transform(picture)
    if not isinstance(result, Tensor) or result.ndim != 3 or result.shape[0] != 3 or result.dtype != torch.float32:
        said = f"{tuple(result.shape)} {result.dtype}" if isinstance(result, Tensor) else type(result).__name__
        raise UserError(f"{path}: the transform gives {said} of a picture, and must give a tensor (3, H, W) of float32")
    if not torch.equal(result, transform(picture)):
        raise UserError(
            f"{path}: the transform gives another tensor of the same picture each time, and must not be random"
        )
    return result


def _figures(values: Tensor) -> tuple[float, ...]:
    return tuple(round(float(each), 6) for each in values)


def _check_shape(rows: Any, count: int, what: str, width: int | None = None) -> None:
    shape = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
    fits = isinstance(rows, Tensor) and rows.ndim == 2 and rows.shape[0] == count and rows.shape[1]
    if not fits or width not in (None, rows.shape[1]):
        raise UserError(f"{what} gives {shape}, and must give a tensor ({count}, {'D' if width is None else width})")
    if rows.is_complex():
        raise UserError(f"{what} gives complex numbers, and must give real ones")


def _check_finite(rows: Tensor, what: str) -> None:
    if not rows.isfinite().all():
        raise UserError(f"{what} gives values that are not finite (NaN or infinite)")


def _load(module: nn.Module, file: Path) -> None:
    try:
        module.load_state_dict(read_tensors(file))
    except RuntimeError as error:
        raise UserError(f"the weights in {file} are not this module's: {error}") from error
