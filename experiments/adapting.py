"""Scores new images as a stream by a test-time method, whose memory is kept in a file (detect.py --adapt)."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer

from clip_ood.callbacks.prediction_writer import Line, PredictionPrinter
from clip_ood.config.new_files import beside
from clip_ood.data.inputs import is_stream, sources
from clip_ood.detect.adaptive_predictor import AdaptivePredictor
from clip_ood.detect.memory_file import header_of, read_memory, write_memory
from clip_ood.detect.prediction_files import ADAPTED
from clip_ood.detect.saved import SavedDetector
from clip_ood.errors import ConfigError, UserError
from clip_ood.experiments.predictions import Counts, printed, written
from clip_ood.experiments.watching import tell
from clip_ood.files.text_files import not_utf8
from clip_ood.process.locks import alone
from clip_ood.stream.build import make
from clip_ood.stream.names import read_methods

if TYPE_CHECKING:
    from clip_ood.experiments.detect import Request


def adapt(request: Request, trainer: Trainer) -> Counts:
    """Scores all images in their order, prints or writes the scores, then writes the memory.

    The memory file is left as it was unless all scores were written. Raises: ConfigError for several processes, UserError for a run without
    what the method needs and for paths that name no image, MemoryFileError for a file that is no memory of it, all before the encoder is
    loaded. Paths from standard input are known to name none at their end alone, and the memory is left as it was.
    """
    if trainer.world_size > 1:
        raise ConfigError(
            f"--adapt scores a stream in one order, and there are {trainer.world_size} processes: take one (--trainer.devices=1)"
        )
    saved = SavedDetector(request.run, request.trust_classes)
    if not any(map(is_stream, request.paths)) and all(source.reason is not None for source in sources(request.paths)):
        raise UserError(no_image(request.paths))
    (spec,) = read_methods([request.adapt], "--adapt")
    method = make(spec, saved.reference)
    memory = request.memory.resolve()  # a link stays one, and its file is gone on from
    with alone(memory, "wait until it ends, or give this call another --memory"):
        header = read_memory(memory, header_of(spec, method, saved), method)
        with redirect_stdout(sys.stderr):  # downloads are announced on stderr
            backbone = saved.backbone(request.encoder, request.allow_download)
            saved.load_texts(method.requires)
        predictor = AdaptivePredictor(saved, backbone, spec.label, method, header.seen)
        counts = _scored(request, predictor, trainer)
        if not counts.judged:
            raise UserError(no_image(request.paths))
        write_memory(memory, replace(header, seen=predictor.seen), method.memory)
    _tell(request, counts, header.seen, predictor)
    return counts


def no_image(paths: list[str]) -> str:
    """Says that paths name no image from which a memory could be made."""
    named = ", ".join(paths[:3]) + (", …" if len(paths) > 3 else "")
    return f"--adapt: {named}: no image that can be read is there, so that there is nothing to remember. Name images or their folder"


def _scored(request: Request, predictor: AdaptivePredictor, trainer: Trainer) -> Counts:
    from clip_ood.experiments.detect import judge

    to = (request.tolerated(), [predictor.label], None, [ADAPTED])
    if request.out is None:
        with printed(request.format, *to) as predictions:
            judge(request, predictor, trainer, PredictionPrinter(predictions.take))
        return predictions.counts
    held: list[Line] = []
    watch = request.tolerated().take

    def hold(line: Line) -> None:
        watch(line)
        held.append(line)

    judge(request, predictor, trainer, PredictionPrinter(hold))
    exact = request.out.suffix.lower() == ".parquet" and any(not_utf8(line["path"]) for line in held)
    with written(request.out, *to, exact) as predictions:
        for line in held:
            predictions.take(line)
    return predictions.counts


def _tell(request: Request, counts: Counts, seen: int, predictor: AdaptivePredictor) -> None:
    """Says on standard error what was scored, that nothing was decided, and where the memory is."""
    size = request.batch_size or predictor.batch_size
    places: list[Path | None] = [request.out, beside(request.out) if counts.failed and request.out else None]
    lines = [
        *(f"not judged: {path}: {reason}" for path, reason in counts.shown),
        f"{counts.judged:,} images scored by {predictor.label} in batches of {size:,}, after {seen:,} earlier ones"
        + (f"; {counts.failed:,} could not be judged" if counts.failed else ""),
        f"These scores used the stream: {predictor.label} learns from the images that it scores, so that a score depends on those before it. "
        "None is accepted or rejected, since the run's thresholds are calibrated on scores that do not adapt",
        *(f"Written: {place}" for place in places if place is not None),
        f"Memory: {request.memory} (the next call with it goes on from here)",
    ]
    for line in lines:
        tell(line)
