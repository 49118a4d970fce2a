"""The values that encoders, heads and detectors exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize


@dataclass(frozen=True)
class Outputs:
    """The outputs of a model for N images; a field that the model does not compute is None.

    Shapes: features (N, D), g before the joint-space projection; embeddings (N, E), unit-norm h; logits (N, C) of
    the head; labels (N,) int64, -1 where a row has none; indices (N,) int64, the rows of the image set; layers, the features
    (N, D_l) of single layers by number; tokens, the unit-norm features (N, P, E) of patches by their kind, value or output; copy_of
    (N,) int64, the row in the bank's image set of the bank image that an image is a copy of (a bank image: of itself), -1 for none.
    """

    features: Tensor | None = None
    embeddings: Tensor | None = None
    logits: Tensor | None = None
    labels: Tensor | None = None
    indices: Tensor | None = None
    layers: Mapping[str, Tensor] | None = None
    tokens: Mapping[str, Tensor] | None = None
    copy_of: Tensor | None = None

    def __len__(self) -> int:
        return next(len(value) for _, value in self.tensors())

    def map(self, function: Callable[[Tensor], Tensor]) -> Outputs:
        """Returns the same outputs with `function` applied to every tensor."""

        def applied(value: Tensor | Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
            if isinstance(value, Mapping):
                return {name: function(each) for name, each in value.items()}
            return function(value)

        return replace(self, **{name: applied(value) for name, value in vars(self).items() if value is not None})

    def at(self, layer: str | None) -> Outputs:
        """Returns the same outputs with the features of a layer, (N, D_l), in the place of g; those of "4+8" are of unit norm each, one
        after the other, so that a cosine is the mean of theirs. None stands for g."""
        if layer is None:
            return self
        names = layer.split("+")
        if len(names) == 1:
            return replace(self, features=self.layers[layer])
        parts = [normalize(self.layers[name].float(), dim=1) for name in names]
        return replace(self, features=torch.cat(parts, dim=1))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yields every tensor by name: features, …, layers.<name>, tokens.<name>."""
        for name, value in vars(self).items():
            if isinstance(value, Mapping):
                yield from ((f"{name}.{inside}", each) for inside, each in value.items())
            elif value is not None:
                yield name, value


@dataclass(frozen=True)
class Inside:
    """What is wanted of an encoder besides g and h: layers by their numbers, and kinds of patch tokens."""

    layers: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.layers or self.tokens)

    def __or__(self, other: Inside) -> Inside:
        layers, tokens = {*self.layers, *other.layers}, {*self.tokens, *other.tokens}
        return Inside(tuple(sorted(layers, key=int)), tuple(sorted(tokens)))

    @property
    def arrays(self) -> tuple[str, ...]:
        """The names of what is wanted, as `Outputs.tensors` gives them."""
        return (*(f"layers.{each}" for each in self.layers), *(f"tokens.{each}" for each in self.tokens))

    @classmethod
    def of(cls, arrays: Sequence[str]) -> Inside:
        """Returns what is wanted by the names of arrays, of which others are ignored."""
        found = {
            kind: tuple(name.removeprefix(f"{kind}.") for name in arrays if name.startswith(f"{kind}."))
            for kind in ("layers", "tokens")
        }
        return cls(**found)


NOTHING = Inside()


@dataclass(frozen=True)
class NegativeLabels:
    """Unit-norm text embeddings of the ID classes (C, E) and of words far from them (M, E), and these M words, if they are known."""

    classes: Tensor
    negatives: Tensor
    words: tuple[str, ...] = ()


OF_WORDS = ("neglabel", "csp", "eoe")  # fields of a Reference with negative labels, and the detectors that use them
WITH_NEGATIVES = (*OF_WORDS, "negprompt")


class TextTower(Protocol):
    """The text side of an encoder, for methods that read new texts while they score; a `Backbone` has it."""

    def to(self, device: torch.device) -> TextTower:
        """Moves it to a device."""

    def parameters(self) -> Iterator[Tensor]:
        """Yields its weights."""

    def encode_text(self, texts: list[str]) -> Tensor:
        """Returns unit-norm embeddings of K texts: (K, E)."""

    def tokenize(self, texts: list[str]) -> Tensor:
        """Returns the tokens of K texts: (K, L) int64."""

    def token_embeddings(self, tokens: Tensor) -> Tensor:
        """Returns the embeddings (K, L, W) of tokens (K, L)."""

    def encode_tokens(self, tokens: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns unit-norm embeddings (K, E) of tokens (K, L) whose embeddings (K, L, W) `change` has replaced."""


@dataclass(frozen=True)
class Cache:
    """Tip-Adapter's cache: unit-norm embeddings of training images as keys (n, E), their classes as values (n,) int64, α and β."""

    keys: Tensor
    values: Tensor
    alpha: float
    beta: float


@dataclass(frozen=True)
class Reference:
    """What a detector may know besides the rows: the classes as text embeddings and as weights of the head.

    Shapes: text_embeddings (C, E) unit norm; logit_scale and, for a model trained with a sigmoid loss, logit_bias, the model's own
    s and b in s ⟨h, t⟩ + b; weight (C, D) and bias (C,) of the head,
    with the standardisation folded in, so that z = W g + b; neglabel, csp, eoe and negprompt, the negative labels or learnt
    negative prompts that these detectors use; cache, that of a head that is none of weights, but of training images beside the texts;
    class_images (C, E), the mean embeddings of each class's training images, zero for a class without any;
    projection (D + 1, E), the encoder's A in h = (g, 1) A / ‖(g, 1) A‖. text_tower makes the text side of the encoder when it is first called, and
    always returns the same; it is never saved.
    """

    class_names: tuple[str, ...] | None = None
    text_embeddings: Tensor | None = None
    logit_scale: float | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    neglabel: NegativeLabels | None = None
    csp: NegativeLabels | None = None
    logit_bias: float | None = None
    eoe: NegativeLabels | None = None
    negprompt: NegativeLabels | None = None
    cache: Cache | None = None
    class_images: Tensor | None = None
    projection: Tensor | None = None
    text_tower: Callable[[], TextTower] | None = None

    @property
    def has_head(self) -> bool:
        """Whether it describes a head, a linear one or a cache, so that the logits of new images can be computed."""
        return self.weight is not None or self.cache is not None
