"""The two values that travel between encoders, heads and detectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """What a model says of N images; a field that a model cannot give is None.

    Shapes: features (N, D), g before the joint-space projection; embeddings (N, E), unit-norm h; logits (N, C) of
    the head; labels (N,) int64, -1 where a row has none; indices (N,) int64, the rows of the image set.
    """

    features: Tensor | None = None
    embeddings: Tensor | None = None
    logits: Tensor | None = None
    labels: Tensor | None = None
    indices: Tensor | None = None

    def __len__(self) -> int:
        return next(len(value) for value in self._present().values())

    def map(self, function: Callable[[Tensor], Tensor]) -> Outputs:
        """The same outputs with `function` applied to every tensor that is there."""
        return replace(self, **{name: function(value) for name, value in self._present().items()})

    def _present(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class NegativeLabels:
    """ID classes (C, E) and words far from them (M, E), as the text encoder sees them; unit norm."""

    classes: Tensor
    negatives: Tensor


@dataclass(frozen=True)
class Reference:
    """What a detector may know beside the rows: the classes as the text encoder and as the head see them.

    Shapes: text_embeddings (C, E) unit norm; logit_scale the model's own s; weight (C, D) and bias (C,) of the head
    with the standardisation folded in, so that z = W g + b; neglabel and csp, the negative labels that these
    detectors choose.
    """

    class_names: tuple[str, ...] | None = None
    text_embeddings: Tensor | None = None
    logit_scale: float | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    neglabel: NegativeLabels | None = None
    csp: NegativeLabels | None = None
