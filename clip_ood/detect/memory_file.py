"""Keeps the memory of a test-time method in a file of its own: safetensors with a JSON header, nothing pickled."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clip_ood.backbones.fingerprint import digest
from clip_ood.detect.saved import SavedDetector
from clip_ood.detectors.names import Spec
from clip_ood.errors import UserError, brief
from clip_ood.files.records import Count, Record, Text, Unfit, fitting
from clip_ood.files.tensor_files import save_tensors
from clip_ood.stream.adaptive import AdaptiveDetector

HEADER, FORMAT = "memory", 1


class MemoryFileError(UserError):
    """A memory file is damaged, or is that of another method, detector or encoder."""


@dataclass(frozen=True)
class MemoryHeader:
    """Whose memory it is, and how many images of the stream it has seen.

    Attributes: detector, a digest of the encoder and of what the method compares images with; parameters, those that were given
    to the method; digest, that of the tensors.
    """

    method: str
    parameters: dict[str, Any]
    detector: str
    seen: int = 0
    digest: str = ""
    format: int = FORMAT


class _Declared(Record):
    """The keys of a MemoryHeader."""

    model_config = ConfigDict(extra="forbid")
    method: Text
    parameters: dict[str, Any]
    detector: Text
    seen: Count
    digest: Text
    format: Annotated[int, Field(ge=FORMAT, le=FORMAT)]


def header_of(spec: Spec, method: AdaptiveDetector, saved: SavedDetector) -> MemoryHeader:
    """Returns the header of a method's memory before the first image."""
    known = {"texts": method.texts}
    if "class_images" in method.requires:
        known["class_images"] = method.class_images
    texts = _digest(known)
    return MemoryHeader(spec.name, dict(spec.parameters), digest([saved.encoder.fingerprint, texts]))


def read_memory(path: Path, expected: MemoryHeader, method: AdaptiveDetector) -> MemoryHeader:
    """Lets `method` go on from the memory in a file, and returns the file's header; without a file, `expected` is returned.

    Raises: MemoryFileError for a damaged file, and for the memory of another method, detector or encoder; OSError.
    """
    if not path.exists():
        return expected
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found = MemoryHeader(**fitting(json.loads((file.metadata() or {})[HEADER]), _Declared))
    except (SafetensorError, Unfit, ValueError, KeyError, TypeError) as error:
        raise MemoryFileError(
            f"--memory: {path} is damaged, or no file that detect.py --adapt wrote ({type(error).__name__}: "
            f"{brief(error)}): name another file, and the stream begins anew"
        ) from error
    if (found.method, found.parameters) != (expected.method, expected.parameters):
        raise MemoryFileError(
            f"--memory: {path} is the memory of {_told(found)}, and not of {_told(expected)}: name another file, or the method that wrote it"
        )
    if found.detector != expected.detector:
        raise MemoryFileError(
            f"--memory: {path} is the memory of another detector: its encoder, classes or words differ from those of --run. Name another file"
        )
    if found.digest != _digest(tensors):
        raise MemoryFileError(f"--memory: {path} is damaged: its content is not what was written. Name another file")
    try:
        method.restore(tensors)
    except UserError as error:
        raise MemoryFileError(f"--memory: {path}: {error}. Name another file") from error
    return found


def write_memory(path: Path, header: MemoryHeader, memory: dict[str, Tensor]) -> None:
    """Writes a memory, whole or not at all. Raises: OSError, which names the file."""
    memory = {name: value.cpu() for name, value in memory.items()}
    save_tensors(memory, path, {HEADER: json.dumps(asdict(replace(header, digest=_digest(memory))))})


def _digest(tensors: dict[str, Tensor]) -> str:
    found = sha256()
    for name in sorted(tensors):
        value = tensors[name].cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.numpy().tobytes())
    return found.hexdigest()


def _told(header: MemoryHeader) -> str:
    return " ".join([header.method, *(f"{key}={value}" for key, value in header.parameters.items())])
