"""Tensors in files that whoever may read other new files of the folder may read too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from stat import S_IMODE

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file with the mode that the umask gives; safetensors alone lets nobody but its owner read it."""
    path.touch()
    mode = S_IMODE(path.stat().st_mode)
    save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    path.chmod(mode)
