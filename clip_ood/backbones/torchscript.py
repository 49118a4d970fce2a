"""Reads the tensors of a TorchScript archive, as OpenAI publishes CLIP, without running any of the program in it.

<archive>/data.pkl   the modules with their attributes, tensors as references to
<archive>/data/<n>   their bytes, as they are
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import torch
from torch import Tensor

from clip_ood.errors import UserError

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def is_torchscript(archive: ZipFile) -> bool:
    """Says whether an archive is a program; a torch checkpoint has no constants of code beside its tensors."""
    return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Reads the parameters and buffers of the archived module by their dotted names.

    Raises: pickle.UnpicklingError for an archive that names anything but modules, tensors and plain values; KeyError, ValueError
    and RuntimeError for a damaged one.
    """
    with ZipFile(path) as archive:
        described = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        return dict(_tensors(_Reader(archive, described).load()))


class _Attributes:
    """The attributes of an object whose class the archive itself defines; none of its methods is there."""

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


class _Reader(pickle.Unpickler):
    def __init__(self, archive: ZipFile, described: str) -> None:
        super().__init__(BytesIO(archive.read(described)))
        self.archive, self.folder = archive, described.removesuffix(".pkl")
        self.read: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Attributes
        if module == "torch.jit._pickle":  # typed lists and the like
            return _first
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, reference: tuple[str, torch.dtype, str, str, int]) -> Tensor:
        _, kind, key, *_ = reference
        if key not in self.read:
            member = self.archive.getinfo(f"{self.folder}/{key}")
            if member.compress_type != ZIP_STORED:  # torch never compresses
                raise UserError(f"its part {member.filename} is compressed")
            content = bytearray(self.archive.read(member))
            self.read[key] = torch.frombuffer(content, dtype=kind) if content else torch.empty(0, dtype=kind)
        return self.read[key]


def _first(value: Any, *_: Any) -> Any:
    return value


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)  # raises beyond the storage


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, _Attributes):
        for key, each in value.state.items():
            yield from _tensors(each, f"{name}.{key}" if name else key)
