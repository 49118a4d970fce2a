"""Checks the tensors of a file: their kind, and their shapes, written by letters, each of which stands for one size."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from clip_ood.files.records import Unfit

# C classes, D features, E embeddings, M, W and O negative words, P negative prompts, K keys of a cache, n images
HEAD = {  # of a checkpoint
    "head.mean": "D",
    "head.std": "D",
    "head.linear.weight": "CD",
    "head.linear.bias": "C",
    "head.weight": "CD",
    "head.bias": "C",
}
REFERENCE = {  # of a detector's folder
    "text_embeddings": "CE",
    "weight": "CD",
    "bias": "C",
    "neglabel.classes": "CE",
    "neglabel.negatives": "ME",
    "csp.classes": "CE",
    "csp.negatives": "WE",
    "eoe.classes": "CE",
    "eoe.negatives": "OE",
    "negprompt.classes": "CE",
    "negprompt.negatives": "PE",
    "cache.keys": "KE",
    "cache.values": "K",
    "cache.alpha": "",
    "cache.beta": "",
    "class_images": "CE",
    "projection": "GE",
}
CACHE = tuple(name for name in REFERENCE if name.startswith("cache."))
WHOLE = ("indices", "bank_labels", "cache.values")  # are integers; all others are finite floating-point numbers


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises Unfit for a tensor of another kind than its name says, and for NaN or infinite numbers."""
    for name, tensor in tensors.items():
        if name in WHOLE:
            if tensor.dtype != torch.int64:
                raise Unfit(f"{name} holds {_kind(tensor)}, and must hold int64")
        elif not tensor.is_floating_point():
            raise Unfit(f"{name} holds {_kind(tensor)}, and must hold numbers of floating point")
        elif not tensor.isfinite().all():
            raise Unfit(f"{name} holds numbers that are not finite")


def check_shapes(tensors: Mapping[str, Tensor], shapes: Mapping[str, str], sizes: dict[str, int]) -> None:
    """Raises Unfit for a tensor that `shapes` does not name, or whose shape does not fit its letters or the known `sizes`.

    Sizes that are found are added to `sizes`.
    """
    for name, tensor in tensors.items():
        if name not in shapes:
            raise Unfit(f"{name} is no tensor that a run writes there")
        expected = {letter: sizes.get(letter) for letter in shapes[name]}
        if tensor.ndim != len(expected) or any(
            want not in (None, size) for want, size in zip(expected.values(), tensor.shape, strict=True)
        ):
            known = ", ".join(letter if size is None else str(size) for letter, size in expected.items())
            raise Unfit(f"{name} has the shape {tuple(tensor.shape)}, and must have ({known})")
        sizes |= dict(zip(expected, tensor.shape, strict=True))


def check_reference(tensors: Mapping[str, Tensor], classes: int | None) -> None:
    """Raises Unfit for tensors that are not a whole head or cache, text embeddings and negative labels of this many classes (None: any)."""
    check_finite(tensors)
    check_shapes(tensors, REFERENCE, {} if classes is None else {"C": classes})
    for one, other in (
        ("weight", "bias"),
        ("neglabel.classes", "neglabel.negatives"),
        ("csp.classes", "csp.negatives"),
        ("eoe.classes", "eoe.negatives"),
        ("negprompt.classes", "negprompt.negatives"),
    ):
        if (one in tensors) != (other in tensors):
            raise Unfit(f"it holds one of {one} and {other} alone")
    _check_cache({name: tensor for name, tensor in tensors.items() if name.startswith("cache.")}, tensors)


def _check_cache(cache: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    if not cache:
        return
    if missing := [name for name in (*CACHE, "text_embeddings") if name not in tensors]:
        raise Unfit(f"it holds a cache without {', '.join(missing)}")
    values = cache["cache.values"]
    if not len(values) or not 0 <= values.min() <= values.max() < len(tensors["text_embeddings"]):
        raise Unfit("cache.values names no classes, or such that there are not")


def check_bank(tensors: Mapping[str, Tensor], sizes: dict[str, int]) -> None:
    """Raises Unfit for tensors that are no part of a bank: chunks of features, each with the indices of its images.

    `sizes` is as in `check_shapes`.
    """
    numbers = {name.removeprefix("features.") for name in tensors if name.startswith("features.")}
    if tensors.keys() != {f"{name}.{number}" for name in ("features", "indices") for number in numbers}:
        raise Unfit("it holds other tensors than features and the indices of each")
    for number in numbers:
        chunk = {name: tensors[f"{name}.{number}"] for name in ("features", "indices")}
        sizes.pop("n", None)
        check_finite(chunk)
        check_shapes(chunk, {"features": "nD", "indices": "n"}, sizes)


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
