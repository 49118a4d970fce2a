"""Reads the tensors in a checkpoint file, whatever their authors wrapped them in, as data: pickled code is never run."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch
from safetensors.torch import load_file
from torch import Tensor

from clip_ood.backbones.torchscript import is_torchscript, read_torchscript
from clip_ood.errors import UserError
from clip_ood.files.regular_file import no_file, special

WRAPPERS = (  # keys that hold the weights beside optimizers and settings; averaged weights come first
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "teacher",
    "student",
    "module",
    "encoder",
    "backbone",
    "net",
    "weights",
)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads the state dict in a file of safetensors, torch or TorchScript, recognised by its content, on the CPU.

    Raises: pickle.UnpicklingError for a file that holds more than data, or that is none of these; ValueError for one that is
    truncated or holds no tensors.
    """
    if special(path) is not None:
        raise UserError(f"{path} is no checkpoint{no_file(path)}")
    try:
        found = unwrapped(_content(path))
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # readers may raise anything for damaged files
        raise UserError(f"the file is damaged, or none of torch's or safetensors' ({_reason(error)})") from error
    if not found:
        raise UserError("the file holds no tensors by their names")
    return found


def unwrapped(content: Any) -> dict[str, Tensor]:
    """Returns the tensors by name in a checkpoint's content, from the innermost of its `WRAPPERS`."""
    while isinstance(content, Mapping):
        inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            return {name: value for name, value in content.items() if isinstance(value, Tensor)}
        content = inner
    return {}


def _content(path: Path) -> Any:
    if is_zipfile(path):
        with ZipFile(path) as archive:
            program = is_torchscript(archive)
        if program:
            return read_torchscript(path)
    elif _is_safetensors(path):
        return load_file(path)
    with torch.serialization.safe_globals([argparse.Namespace]):  # a training's settings: names and values
        return torch.load(path, map_location="cpu", weights_only=True)


def _is_safetensors(path: Path) -> bool:
    """Says whether a file begins with the length of a header, and the header."""
    with path.open("rb") as file:
        length, brace = int.from_bytes(file.read(8), "little"), file.read(1)
    return path.suffix == ".safetensors" or (brace == b"{" and length < path.stat().st_size)


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0][:120] or type(error).__name__
