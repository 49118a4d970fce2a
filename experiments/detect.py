"""Judges new images by a finished run: from a request to predictions and their summary."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from clip_ood.backbones.fingerprint import digest
from clip_ood.callbacks.prediction_writer import PredictionParts, PredictionPrinter
from clip_ood.config.detecting import beside
from clip_ood.data.inputs import is_stream, sources
from clip_ood.datamodules.new_images import NewImages
from clip_ood.detect.predictor import Decision, Predictor
from clip_ood.detect.saved import SavedDetector
from clip_ood.errors import ConfigError, UserError
from clip_ood.experiments.predictions import Counts, printed, written
from clip_ood.experiments.quiet import hush
from clip_ood.experiments.set_aside import Aside
from clip_ood.experiments.tolerated import Tolerated
from clip_ood.experiments.trainer import new_trainer, predict
from clip_ood.files.text_files import not_utf8
from clip_ood.files.unreadable import SHARE, Tolerance
from clip_ood.lightning_modules.prediction import PredictionModule
from clip_ood.process import stalls
from clip_ood.process.called import called
from clip_ood.runs.going_on import next_step
from clip_ood.terminal.shown import one_line, say
from clip_ood.versions import versions

hush()

BATCHES = 64  # in a part; a killed run loses at most this many
MANY = 4  # paths; the next step's command does not repeat this many


@dataclass(frozen=True)
class Request:
    """The request to detect.py: the run, the inputs, and the options (None: as the run has it)."""

    run: Path
    paths: list[str]
    detector: str | None = None
    accept: float | None = None
    encoder: str | None = None
    out: Path | None = None
    format: str = "csv"
    copy_ood: Path | None = None
    link: bool = False
    max_unreadable: float = SHARE
    trust_classes: bool = False
    allow_download: bool = False
    batch_size: int | None = None
    workers: int | None = None
    timeout: float = stalls.LIMIT
    trainer: dict[str, Any] = field(default_factory=dict)

    @property
    def aside(self) -> Aside | None:
        """The folder for flagged images."""
        return None if self.copy_ood is None else Aside(self.copy_ood, self.link)

    def tolerated(self) -> Tolerated:
        """Returns a counter of the images that cannot be read, which starts at none."""
        listed = None if self.out is None else beside(self.out)
        return Tolerated(self.paths, Tolerance(self.max_unreadable, "--max-unreadable"), listed)


def conduct(request: Request) -> Counts | None:
    """Judges all images, prints or writes the predictions, and counts them on standard error.

    It returns None except in the first process. Raises: ValueError for a run that cannot judge, before its encoder is loaded.
    """
    stalls.wait_at_most(request.timeout)
    saved = SavedDetector(request.run, request.trust_classes)
    columns = saved.chosen(request.detector)
    accept = saved.accept if request.accept is None else request.accept
    for column in columns:
        Decision(column, saved.calibration(column), accept)
    trainer = _trainer(request)
    with redirect_stdout(sys.stderr):  # downloads are announced on stderr, because predictions may go to a program
        backbone = saved.backbone(request.encoder, request.allow_download)
    predictor = Predictor(saved, backbone, columns, accept)
    go = _print if request.out is None else _write
    counts = go(request, saved, predictor, trainer)
    if counts is not None:
        _tell(counts, predictor, request)
    return counts


def _print(request: Request, saved: SavedDetector, predictor: Predictor, trainer: Trainer) -> Counts:
    with printed(request.format, request.tolerated(), predictor.columns, request.aside) as predictions:
        printer = PredictionPrinter(predictions.take)
        _predict(request, predictor, trainer, printer, lambda part, sources: False, batches=1)
    return predictions.counts


def _write(request: Request, saved: SavedDetector, predictor: Predictor, trainer: Trainer) -> Counts | None:
    folder = request.out.with_name(f"{request.out.name}.parts")
    size = request.batch_size or predictor.batch_size
    about = [saved.manifest["digest"], predictor.columns, predictor.accept, size, versions()]
    parts = PredictionParts(folder, digest(about), request.tolerated().take)
    count = _predict(request, predictor, trainer, parts, parts.is_whole, BATCHES)
    trainer.strategy.barrier("judged")
    if not trainer.is_global_zero:
        return None
    exact = request.out.suffix.lower() == ".parquet" and any(not_utf8(line["path"]) for line in parts.read(count))
    with written(request.out, request.tolerated(), predictor.columns, request.aside, exact) as predictions:
        for line in parts.read(count):
            predictions.take(line)
    parts.remove()
    return predictions.counts


def _predict(request: Request, predictor: Predictor, trainer: Trainer, writer: Callback, is_whole, batches: int) -> int:
    """Judges what is not there yet, and returns the number of parts."""
    size = request.batch_size or predictor.batch_size
    data = NewImages(
        lambda: sources(request.paths), is_whole, predictor.backbone.transform, size, batches, request.workers
    )
    predict(trainer, PredictionModule(predictor), data, writer)
    if data.parts is None:
        raise UserError("Not all inputs were judged: Lightning stopped before their end")
    return data.parts


def _trainer(request: Request) -> Trainer:
    ours = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    ours["enable_progress_bar"] = request.out is not None and sys.stderr.isatty()
    trainer = new_trainer({"devices": 1} | ours, request.trainer, "--trainer.")
    if trainer.world_size > 1 and (request.out is None or any(map(is_stream, request.paths))):
        raise ConfigError(
            f"{trainer.world_size} devices need inputs that each can read, and a file to write to: give --out FILE, and a list "
            "in a file instead of standard input"
        )
    return trainer


def _tell(counts: Counts, predictor: Predictor, request: Request) -> None:
    """Prints the summary on standard error, because a program may read standard output."""

    def tell(line: str) -> None:
        say(one_line(line), file=sys.stderr)

    for path, reason in counts.shown:
        tell(f"not judged: {path}: {reason}")
    if counts.failed > len(counts.shown):
        where = f"see {beside(request.out)}" if request.out else "with --out FILE all of them are listed"
        tell(f"not judged: {counts.failed - len(counts.shown):,} more: {where}")
    for each in predictor.decisions:
        ood = counts.ood[each.column]
        share = f" ({100 * ood / counts.judged:.1f} %)" if counts.judged else ""
        tell(
            f"{counts.judged:,} images judged, {ood:,} of them OOD{share}: {each.column} below {each.threshold:.6g}, which "
            f"accepts {'about ' if each.calibration.choice else ''}{100 * each.expected:.1f} % of new ID images (calibrated on "
            f"{len(each.calibration):,}{_chosen(each)})"
            + (f"; {counts.failed:,} could not be judged" if counts.failed else "")
        )
    if predictor.class_predictor is not None:
        tell(f"predicted_class is by {predictor.class_predictor.told()}")
    for path, reason in counts.left_shown:
        tell(f"judged, but not set aside: {path}: {reason}")
    if counts.left > len(counts.left_shown):
        tell(f"judged, but not set aside: {counts.left - len(counts.left_shown):,} more")
    if request.out is not None:
        tell(f"Predictions: {request.out}")
    if request.copy_ood is not None and counts.ood[predictor.column]:
        how = "linked" if request.link else "copied"
        tell(f"OOD images: {how} to {request.copy_ood}; they stay where they are, too")
    tell(_next(counts, predictor, request))


def _chosen(decision: Decision) -> str:
    """Says if the detector was chosen by the images that calibrate it."""
    choice = decision.calibration.choice
    return "" if choice is None else f", which also chose among {choice.candidates} candidates"


def _next(counts: Counts, predictor: Predictor, request: Request) -> str:
    """Returns the next step: to look at the images that were flagged, or to ask the other detectors."""
    command = [*called("detect").split(), "--run", str(request.run)]
    few = request.paths if len(request.paths) < MANY else [request.paths[0], "..."]
    same = [*command, *few, *(["--accept", f"{request.accept:g}"] if request.accept is not None else [])]
    if counts.ood[predictor.column] and request.copy_ood is None:
        what = "copy the OOD images together and look at them"
        return next_step([*same, "--detector", predictor.column, "--copy-ood", "odd/"], what)
    if len(predictor.columns) == 1:
        return next_step([*same, "--detector", "all"], "ask all detectors of the run in one pass")
    return next_step([*command, "--export", "model.onnx"], "write encoder and detectors as one file")
