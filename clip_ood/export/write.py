"""Writes the graph, and believes it only after having run it against the detectors themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from clip_ood.backbones.backbone import Backbone
from clip_ood.detectors.build import Omitted
from clip_ood.detectors.detector import Detector, exact, score_together
from clip_ood.export.formats import Onnx, TorchExport, format_of
from clip_ood.export.graph import ScoringGraph, StandIn, class_logits
from clip_ood.outputs import Outputs, Reference

TOLERANCE = 1e-4  # of a score's spread over the images that are tried
ROUNDING = 1e-6  # of its size: some units in the last place of float32
BATCHES = (1, 3)  # that are tried

Score = Callable[[Outputs], Tensor]


@dataclass(frozen=True)
class Exported:
    """What was written: the detectors in it, those left out and why, what a user must know.

    files: `path`, and where the weights are large `path`.data; differences: the largest one of each output between the file
    and the detectors, as a fraction of the output's spread over a few generated images.
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

    The file also holds, as JSON under the key clip_ood, what `describe` gives. It is run before it gets its name: another
    score than that of `Detector.score` is an error. Raises ValueError for that, and as `format_of`; for an encoder that is
    not on the CPU, a detector that is not fitted, and an encoder that the format cannot hold.
    """
    kind = format_of(path)
    if (device := next(backbone.parameters()).device).type != "cpu":
        raise ValueError(f"export: the encoder is on {device}, expected the CPU; the file runs on any device")
    scores, omitted = _traceable(detectors)
    with exact(Outputs(features=torch.empty(0))), _in_precision(backbone, kind) as notes:
        with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            written = Path(folder) / path.name
            try:
                _write(kind, written, backbone, reference, scores, thresholds)
            except Exception as error:  # exporters raise anything
                faults = _faults(kind, Path(folder), backbone, reference, scores)
                if not faults:
                    raise ValueError(f"export: this encoder cannot be written as {path.suffix}: {_first_line(error)}") from error
                omitted += faults
                scores = {name: score for name, score in scores.items() if name not in {each.detector for each in faults}}
                _write(kind, written, backbone, reference, scores, thresholds)
            kept = {name: detectors[name] for name in scores}
            differences = compare(kind.load(written)[0], ScoringGraph(backbone, reference, scores), kept)
            files = [each.replace(path.parent / each.name) for each in sorted(Path(folder).glob(f"{path.name}*"))]
    return Exported(tuple(files), tuple(scores), tuple(omitted), differences, tuple(notes))


def describe(backbone: Backbone, reference: Reference, thresholds: Mapping[str, float], outputs: list[str]) -> dict[str, Any]:
    """What is to be known of a graph: its outputs, thresholds (images whose score is below are flagged), class names, how
    images become pixels (mean and std are applied inside), the precision of its encoder, and versions."""
    prepared = backbone.preprocessing
    names = [name.removeprefix("score_") for name in outputs if name.startswith("score_")]
    return {
        "outputs": outputs,
        "detectors": names,
        "thresholds": {name: float(thresholds[name]) for name in names if name in thresholds},
        "class_names": None if reference.class_names is None else list(reference.class_names),
        "size": list(prepared.size),
        "interpolation": prepared.interpolation,
        "mean": list(prepared.mean),
        "std": list(prepared.std),
        "transform": " ".join(str(backbone.transform).split()),
        "precision": str(backbone.dtype).removeprefix("torch."),
        "versions": {name: version(name) for name in ("clip-ood", "torch", "open_clip_torch", "timm")},
    }


def compare(run: Callable[[Tensor], dict[str, Tensor]], live: ScoringGraph, detectors: Mapping[str, Detector]) -> dict[str, float]:
    """The largest difference of each output between a file, `run`, and the detectors, as a fraction of the output's spread.

    Raises: ValueError for a difference above `TOLERANCE`.
    """
    batches = images(live.backbone.preprocessing.size).split(BATCHES)
    ours = [_live(live, pixels, detectors) for pixels in batches]
    theirs = [run(pixels) for pixels in batches]
    differences = {}
    for name in ours[0]:
        expected, got = (torch.cat([each[name] for each in side]).double() for side in (ours, theirs))
        spread = (expected.amax(dim=0) - expected.amin(dim=0)).max()
        error = (got - expected).abs()
        allowed = TOLERANCE * spread + ROUNDING * expected.abs().max()
        if not (error <= allowed).all():
            raise ValueError(
                f"export: {name} of the graph differs from the detector's by {error.max():.2g}, with scores from "
                f"{expected.min():.4g} to {expected.max():.4g}: no file was written. Export without it, or as .pt2"
            )
        differences[name] = (error.max() / spread).item() if spread > 0 else 0.0
    return differences


def images(size: tuple[int, int]) -> Tensor:
    """Generated images (4, 3, H, W) in [0, 1], from an even colour to noise."""
    generator = torch.Generator().manual_seed(0)
    return torch.cat(
        [
            interpolate(torch.rand(1, 3, cells, cells, generator=generator), size=size, mode="bilinear")
            for cells in (1, 3, 12, max(size))
        ]
    )


def _live(graph: ScoringGraph, pixels: Tensor, detectors: Mapping[str, Detector]) -> dict[str, Tensor]:
    rows = graph.rows(pixels)
    said = {"features": rows.features}
    if (logits := class_logits(rows, graph.reference)) is not None:
        said["confidence"] = logits.softmax(dim=1).amax(dim=1)
    scores = score_together(list(detectors.values()), rows) if detectors else []
    return said | {f"score_{name}": score for name, score in zip(detectors, scores, strict=True)}


def _traceable(detectors: Mapping[str, Detector]) -> tuple[dict[str, Score], list[Omitted]]:
    scores: dict[str, Score] = {}
    omitted = []
    for name, detector in detectors.items():
        detector.check_fitted()
        try:
            scores[name] = detector.traceable()
        except ValueError as error:
            omitted.append(Omitted(name, str(error)))
    return scores, omitted


def _write(
    kind: type[Onnx] | type[TorchExport],
    path: Path,
    backbone: Backbone | StandIn,
    reference: Reference,
    scores: Mapping[str, Score],
    thresholds: Mapping[str, float],
) -> None:
    graph = ScoringGraph(backbone, reference, scores).eval()
    example = images(backbone.preprocessing.size)[:2]
    batch = {0: torch.export.Dim("batch", min=1)}
    program = torch.export.export(graph, (example,), dynamic_shapes=(batch,))
    kind.write(program, path, describe(backbone, reference, thresholds, list(graph(example))))


def _faults(
    kind: type[Onnx] | type[TorchExport],
    folder: Path,
    backbone: Backbone,
    reference: Reference,
    scores: Mapping[str, Score],
) -> list[Omitted]:
    """The detectors that cannot be written, each tried on its own without the encoder."""
    rows = ScoringGraph(backbone, reference, {}).rows(images(backbone.preprocessing.size)[:2])
    faults = []
    for name, score in scores.items():
        alone = folder / f"alone{'.onnx' if kind is Onnx else '.pt2'}"
        try:
            _write(kind, alone, StandIn(backbone, rows), reference, {name: score}, {})
            kind.load(alone)
        except Exception as error:  # exporters raise anything
            faults.append(Omitted(name, f"cannot be written as {alone.suffix}: {_first_line(error)}"))
    return faults


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def _in_precision(backbone: Backbone, kind: type[Onnx] | type[TorchExport]) -> Iterator[list[str]]:
    """The encoder in float32 meanwhile where the format needs that, with a note about it."""
    own = backbone.dtype
    if str(own).removeprefix("torch.") in kind.precisions:
        yield []
        return
    _cast(backbone, torch.float32)
    try:
        yield [f"the encoder's {own} weights are computed with in float32, so scores differ from the run's by its rounding"]
    finally:
        _cast(backbone, own)  # gives back the same weights


def _cast(backbone: nn.Module, dtype: torch.dtype) -> None:
    backbone.to(dtype)
    for module in backbone.modules():
        if isinstance(module, Backbone):
            module.dtype = dtype
