"""Writes the graph, and accepts it only after comparing it with the detectors themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from operator import or_
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from clip_ood.backbones.backbone import Backbone
from clip_ood.detectors.build import Omitted
from clip_ood.detectors.detector import Detector, exact
from clip_ood.errors import UserError
from clip_ood.export.formats import Format, Run, format_of
from clip_ood.export.graph import ScoringGraph, StandIn
from clip_ood.export.preparation import resize_of
from clip_ood.export.verify import compare, images
from clip_ood.files import pictures as reading
from clip_ood.files.writing import naming
from clip_ood.outputs import NOTHING, Inside, Outputs, Reference
from clip_ood.versions import versions

Score = Callable[[Outputs], Tensor]
PIXELS = "clip_ood_pixels.py"  # lies beside a graph, and turns images into what it takes
Write = Callable[[Path, Backbone | StandIn, Mapping[str, Score]], Run]


@dataclass(frozen=True)
class Exported:
    """The result of an export: the detectors in it, those left out and why, and what a user must know.

    files: `path`, `path`.data if the weights are large, and `PIXELS`, which makes the graph's pixels; differences: the largest
    difference of each output between the file and the detectors, as a fraction of the output's spread over a few generated
    images.
    """

    files: tuple[Path, ...]
    detectors: tuple[str, ...]
    omitted: tuple[Omitted, ...]
    differences: Mapping[str, float]
    notes: tuple[str, ...] = ()


def export(
    path: Path,
    backbone: Backbone,
    reference: Reference,
    detectors: Mapping[str, Detector],
    thresholds: Mapping[str, float],
) -> Exported:
    """Writes encoder, head and fitted detectors to `path` as one graph (`ScoringGraph`): .onnx, or .pt2 for torch.export.

    Everything is float32, or float64 where detectors are. The file also holds the result of `describe`, as JSON under the key
    clip_ood. The file is run before it gets its name: a score other than that of `Detector.score` is an error. `PIXELS`, a copy
    of `clip_ood.files.pictures`, is written beside it, if that does what the encoder's transform does.
    Raises: ValueError for such a score, and as `format_of`; for an encoder that is not on the CPU, a detector that is not fitted,
    and an encoder that the format cannot hold.
    """
    kind = format_of(path)
    _check(backbone, detectors)
    scores, omitted = _traceable(detectors)
    inside = reduce(or_, (each.inside for each in detectors.values()), NOTHING)
    with (
        naming(path),
        exact(Outputs(features=torch.empty(0))),
        _in_float32(backbone) as notes,
        TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder,
    ):
        written = Path(folder) / path.name
        write = partial(_write, kind, reference, thresholds, inside)
        run, scores, faults = _write_what_can_be(write, written, backbone, scores, inside)
        kept = {name: detectors[name] for name in scores}
        differences = compare(run, ScoringGraph(backbone, reference, scores, inside), kept)
        files = [each.replace(path.parent / each.name) for each in sorted(written.parent.glob(f"{path.name}*"))]
        if resize_of(backbone.transform, backbone.preprocessing) is None:
            notes.append(
                f"its encoder resizes in a way that no {PIXELS} does: see `transform` in what the file says of itself"
            )
        else:
            copy = Path(copyfile(reading.__file__, written.with_name(PIXELS)))
            files.append(copy.replace(path.parent / PIXELS))
    return Exported(tuple(files), tuple(scores), (*omitted, *faults), differences, tuple(notes))


def describe(
    backbone: Backbone, reference: Reference, thresholds: Mapping[str, float], outputs: list[str]
) -> dict[str, Any]:
    """Returns the description of a graph: its outputs, thresholds (images with a lower score are flagged), class names, how
    images become pixels (mean and std are applied inside; `resize` is that of `resize_of`), and versions.
    """
    prepared = backbone.preprocessing
    names = [name.removeprefix("score_") for name in outputs if name.startswith("score_")]
    return {
        "outputs": outputs,
        "detectors": names,
        "thresholds": {name: float(thresholds[name]) for name in names if name in thresholds},
        "class_names": None if reference.class_names is None else list(reference.class_names),
        "size": list(prepared.size),
        "resize": resize_of(backbone.transform, prepared),
        "interpolation": prepared.interpolation,
        "mean": list(prepared.mean),
        "std": list(prepared.std),
        "transform": " ".join(str(backbone.transform).split()),
        "versions": versions(),
    }


def _check(backbone: Backbone, detectors: Mapping[str, Detector]) -> None:
    if (device := next(backbone.parameters()).device).type != "cpu":
        raise UserError(f"export: the encoder is on {device}, expected the CPU; an ONNX file then runs on any device")
    if backbone.training:
        raise UserError("export: the encoder is in training mode, expected evaluation mode: call eval()")
    for detector in detectors.values():
        detector.check_fitted()


def _traceable(detectors: Mapping[str, Detector]) -> tuple[dict[str, Score], list[Omitted]]:
    scores: dict[str, Score] = {}
    omitted = []
    for name, detector in detectors.items():
        try:
            scores[name] = _on_layer(detector.traceable(), detector.layer)
        except UserError as error:
            omitted.append(Omitted(name, str(error)))
    return scores, omitted


def _on_layer(score: Score, layer: str | None) -> Score:
    return score if layer is None else lambda rows: score(rows.at(layer))


def _write_what_can_be(
    write: Write, path: Path, backbone: Backbone, scores: dict[str, Score], inside: Inside
) -> tuple[Run, dict[str, Score], list[Omitted]]:
    """Writes all scores that can be written; returns the written graph, the scores in it, and the others with reasons."""
    try:
        return write(path, backbone, scores), scores, []
    except OSError:
        raise  # the disk's error
    except Exception as error:  # exporters raise anything
        faults = _faults(write, path.with_stem("alone"), backbone, scores, inside)
        if not faults:
            raise UserError(f"export: the encoder cannot be written as {path.suffix}: {_cause(error)}") from error
    failing = {each.detector for each in faults}
    scores = {name: score for name, score in scores.items() if name not in failing}
    return write(path, backbone, scores), scores, faults


def _faults(write: Write, path: Path, backbone: Backbone, scores: Mapping[str, Score], inside: Inside) -> list[Omitted]:
    """Returns the detectors that cannot be written, after trying each without the encoder."""
    rows = ScoringGraph(backbone, Reference(), {}, inside).rows(images(backbone.preprocessing.size)[:2])
    faults = []
    for name, score in scores.items():
        try:
            write(path, StandIn(backbone, rows), {name: score})
        except Exception as error:  # exporters raise anything
            reason = f"cannot be written as {path.suffix} (see Detector.traceable): {_cause(error)}"
            faults.append(Omitted(name, reason))
    return faults


def _write(
    kind: Format,
    reference: Reference,
    thresholds: Mapping[str, float],
    inside: Inside,
    path: Path,
    backbone: Backbone | StandIn,
    scores: Mapping[str, Score],
) -> Run:
    """Writes one graph, and returns what was read back from the file."""
    graph = ScoringGraph(backbone, reference, scores, inside)
    example = images(backbone.preprocessing.size)[:2]
    batch = {0: torch.export.Dim("batch", min=1)}
    program = torch.export.export(graph, (example,), dynamic_shapes=(batch,), strict=False)
    kind.write(program, path, describe(backbone, reference, thresholds, list(graph(example))))
    return kind.load(path)[0]


def _cause(error: BaseException) -> str:
    """Returns the first line of an error's cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def _in_float32(backbone: Backbone) -> Iterator[list[str]]:
    """Keeps the encoder in float32 meanwhile, and yields a note if it was not.

    onnxruntime has no bfloat16 kernels for the CPU, and half precision rounds differently wherever operations are fused
    differently, so that no file could be checked.
    """
    own = backbone.dtype
    if own == torch.float32:
        yield []
        return
    _cast(backbone, torch.float32)
    try:
        yield [
            f"the encoder ran in {str(own).removeprefix('torch.')} and is float32 here: scores differ by its rounding"
        ]
    finally:
        _cast(backbone, own)  # restores the same weights


def _cast(backbone: nn.Module, dtype: torch.dtype) -> None:
    backbone.to(dtype)
    for module in backbone.modules():
        if isinstance(module, Backbone):
            module.dtype = dtype
