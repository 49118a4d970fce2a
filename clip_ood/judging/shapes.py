"""What the tensors of a detector's folder must be: their kind, and their shapes by letters that stand for one size each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from clip_ood.records import Unfit

# C classes, D features, E embeddings, M and W negative words, n images; of a name behind a dot the part before it
REFERENCE = {
    "text_embeddings": "CE",
    "weight": "CD",
    "bias": "C",
    "neglabel.classes": "CE",
    "neglabel.negatives": "ME",
    "csp.classes": "CE",
    "csp.negatives": "WE",
}
WHOLE = ("indices", "bank_labels")  # all others are finite numbers of floating point


def check_shapes(tensors: Mapping[str, Tensor], shapes: Mapping[str, str], sizes: dict[str, int]) -> None:
    """Raises Unfit for a tensor that `shapes` does not name, one of another kind, and one whose shape fits neither the letters nor the
    `sizes` that are known of them, to which those found are added."""
    for name, tensor in tensors.items():
        if name not in shapes:
            raise Unfit(f"{name} is no tensor that a run writes there")
        if name in WHOLE:
            if tensor.dtype != torch.int64:
                raise Unfit(f"{name} holds {_kind(tensor)}, and must hold int64")
        elif not tensor.is_floating_point():
            raise Unfit(f"{name} holds {_kind(tensor)}, and must hold numbers of floating point")
        elif not tensor.isfinite().all():
            raise Unfit(f"{name} holds numbers that are not finite")
        letters = shapes[name]
        expected = [sizes.get(letter) for letter in letters]
        if tensor.ndim != len(letters) or any(
            want not in (None, size) for want, size in zip(expected, tensor.shape, strict=True)
        ):
            known = ", ".join(
                letter if size is None else str(size) for letter, size in zip(letters, expected, strict=True)
            )
            raise Unfit(f"{name} has the shape {tuple(tensor.shape)}, and must have ({known})")
        sizes |= dict(zip(letters, tensor.shape, strict=True))


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
