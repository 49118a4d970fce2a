"""Prepares a run's detector to travel: with the encoder's weights beside it, or as one graph."""

from __future__ import annotations

from pathlib import Path

from clip_ood.calibration import needed
from clip_ood.class_predictions import CALLED, HEAD, TEXT
from clip_ood.detect.save import add_encoder
from clip_ood.detect.saved import SavedDetector, find_folder
from clip_ood.export import export, format_of
from clip_ood.outputs import Reference
from clip_ood.process.called import called
from clip_ood.process.locks import alone
from clip_ood.runs.run_folder import CONFIG
from clip_ood.terminal.shown import say


def add_encoder_to(run: Path, encoder: str | None, allow_download: bool = False, trust_classes: bool = False) -> None:
    """Puts the encoder's weights into the run's detector folder, and says so; `trust_classes` is as in `SavedDetector`."""
    folder = find_folder(run)
    whole = folder.parent if (folder.parent / CONFIG).is_file() else folder
    with alone(whole, "wait until it ends"):
        saved = SavedDetector(run, trust_classes)
        what = "holds its encoder now" if add_encoder(saved, encoder, allow_download) else "held its encoder already"
    say(f"{saved.folder} {what}: it needs nothing else")
    say(
        f"Next: copy {saved.folder} to another machine, where {called('detect')} --run {saved.folder.name} photos/ judges by it"
    )


def predicts_by(reference: Reference) -> str | None:
    """Returns what predicts the classes of a graph: its head or, without one, the texts; None without either."""
    return HEAD if reference.has_head else TEXT if reference.text_embeddings is not None else None


def export_run(
    saved: SavedDetector,
    path: Path,
    detector: str | None = None,
    accept: float | None = None,
    encoder: str | None = None,
    allow_download: bool = False,
) -> None:
    """Writes encoder, head and detectors (all for None) as one graph, and says what is in it.

    It has thresholds if the run has enough ID val images. Raises: ValueError as `clip_ood.export.export` does, before the encoder
    is loaded if possible.
    """
    format_of(path)
    columns = saved.columns if detector is None else saved.chosen(detector)
    detectors = saved.detectors(columns)
    share = saved.accept if accept is None else accept
    stated = saved.manifest["calibration"]
    enough = stated is not None and stated["n"] >= needed(share)
    thresholds = {name: saved.calibration(name).threshold(share) for name in columns} if enough else {}
    done = export(path, saved.backbone(encoder, allow_download), saved.reference, detectors, thresholds)
    for each in done.omitted:
        say(f"Left out: {each.detector} ({each.reason})")
    for note in done.notes:
        say(note)
    if (predictor := saved.class_predictor) is not None and predictor.by != (own := predicts_by(saved.reference)):
        say(f"predicted is by {CALLED.get(own, 'nothing')} in it, where detect.py takes {predictor.told()}")
    if not enough:
        say("It holds no thresholds: the run has too few ID val images")
    say(
        f"{', '.join(map(str, done.files))}: pixels to scores of {', '.join(done.detectors)}; the same as the run's on trial images"
    )
    run_by = "onnxruntime, as docs/new_images.md shows" if path.suffix.lower() == ".onnx" else "torch.export.load"
    say(f"Next: run {path} on images by {run_by}")
