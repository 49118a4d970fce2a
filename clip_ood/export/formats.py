"""The two kinds of file that hold a graph and its description: ONNX and torch.export."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_ood.errors import UserError
from clip_ood.files.writing import LateErrors

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

ABOUT = "clip_ood"  # the key under which both keep the description, as JSON
ONE_FILE = 2**30  # bytes of weights; protobuf ends at twice that, and what is above goes to a file beside it

Run = Callable[["Tensor"], dict[str, "Tensor"]]


class Onnx:
    """ONNX, run by onnxruntime. Weights above `ONE_FILE` lie beside it in `<name>.data`; the two move together."""

    packages = ("onnx", "onnxscript", "onnxruntime")

    @staticmethod
    def write(program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> None:
        """Writes the graph to `path`."""
        import torch

        with _quiet():
            graph = torch.onnx.export(program, dynamo=True, verbose=False)
        graph.model.metadata_props[ABOUT] = json.dumps(about)
        _name_outputs(graph.model, about["outputs"])
        weights = sum(value.const_value.nbytes for value in graph.model.graph.initializers.values())
        graph.save(path, external_data=weights > ONE_FILE)

    @staticmethod
    def load(path: Path) -> tuple[Run, dict[str, Any]]:
        """Returns the graph in `path` as a function of pixels, and its description."""
        import torch
        from onnxruntime import InferenceSession

        session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]

        def run(pixels: Tensor) -> dict[str, Tensor]:
            values = session.run(None, {"pixels": pixels.numpy()})
            return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}

        return run, json.loads(session.get_modelmeta().custom_metadata_map[ABOUT])


class TorchExport:
    """torch.export's archive, run by PyTorch alone: `torch.export.load(path).module()(pixels)`."""

    packages = ()

    @staticmethod
    def write(program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> None:
        """Writes the graph to `path`."""
        import torch

        with _quiet(), path.open("wb") as file:
            late = LateErrors(file)
            torch.export.save(program, late, extra_files={ABOUT: json.dumps(about)})
            late.check()

    @staticmethod
    def load(path: Path) -> tuple[Run, dict[str, Any]]:
        """Returns the graph in `path` as a function of pixels, and its description."""
        import torch

        found = {ABOUT: ""}
        program = torch.export.load(path, extra_files=found)
        return program.module(), json.loads(found[ABOUT])


Format = type[Onnx] | type[TorchExport]
FORMATS: dict[str, Format] = {".onnx": Onnx, ".pt2": TorchExport}


def format_of(path: Path) -> Format:
    """Returns the format that a file's name asks for; imports nothing heavy.

    Raises: ValueError for another suffix, a folder that is not there, and packages that are not installed.
    """
    if path.suffix not in FORMATS:
        raise UserError(f"export: {path} ends in {path.suffix!r}; expected .onnx (ONNX) or .pt2 (torch.export)")
    if not path.parent.is_dir():
        raise UserError(f"export: {path}: there is no folder {path.parent}")
    kind = FORMATS[path.suffix]
    if missing := [name for name in kind.packages if find_spec(name) is None]:
        raise UserError(
            f"export: {path.suffix} needs {', '.join(kind.packages[:-1])} and {kind.packages[-1]}, and there is no "
            f"{', '.join(missing)}: pip install 'clip-ood[export]'"
        )
    return kind


def _name_outputs(model: Any, names: list[str]) -> None:
    for value, name in zip(model.graph.outputs, names, strict=True):
        value.name = name


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporters' warnings about themselves, because running the graph shows whether it is right."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
