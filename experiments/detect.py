"""Judges new images by a finished run: from a request to predictions and their summary."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from clip_ood.backbones.fingerprint import digest
from clip_ood.callbacks.prediction_writer import Line, PredictionParts, PredictionPrinter
from clip_ood.config.new_files import beside
from clip_ood.config.shard import WHOLE, Shard
from clip_ood.data.inputs import Source, is_stream, sources
from clip_ood.datamodules.new_images import NewImages
from clip_ood.detect.decisions import BatchDecision, cutoffs, decisions_of
from clip_ood.detect.odd import choice_told, flagged
from clip_ood.detect.prediction_files import FURTHER
from clip_ood.detect.predictor import Predictor
from clip_ood.detect.saved import SavedDetector
from clip_ood.errors import ConfigError, UserError
from clip_ood.experiments.adapting import adapt
from clip_ood.experiments.heat_maps import HeatMaps
from clip_ood.experiments.predictions import Counts, printed, written
from clip_ood.experiments.quiet import hush
from clip_ood.experiments.set_aside import Aside
from clip_ood.experiments.tolerated import Tolerated
from clip_ood.experiments.trainer import new_trainer, predict
from clip_ood.experiments.watching import Watched, tell, watched
from clip_ood.files.text_files import not_utf8
from clip_ood.files.unreadable import SHARE, Tolerance
from clip_ood.lightning_modules.prediction import PredictionModule
from clip_ood.metrics.intervals import interval_told
from clip_ood.process import stalls
from clip_ood.process.called import called
from clip_ood.runs.going_on import next_step
from clip_ood.versions import versions

hush()

BATCHES = 16  # in a part: a killed run loses at most this many, and shards differ by no more
MANY = 4  # paths; the next step's command does not repeat this many


def not_yet(part: int, sources: Sequence[Source]) -> bool:
    """Says that no part of the inputs was judged before."""
    return False


@dataclass(frozen=True)
class Request:
    """The request to detect.py: the run, the inputs, and the options (None: as the run has it)."""

    run: Path
    paths: list[str]
    detector: str | None = None
    accept: float | None = None
    fdr: float | None = None
    per_class: bool = False
    odd: bool = False
    nearest: int = 0
    words: int = 0
    adapt: str | None = None
    memory: Path | None = None
    watch: Path | None = None
    delta: float | None = None
    encoder: str | None = None
    out: Path | None = None
    shard: Shard | None = None
    engine: str = "lightning"
    actors: tuple[int, int] | None = None
    gpus: float = 0.0
    format: str = "csv"
    copy_ood: Path | None = None
    link: bool = False
    heat_maps: Path | None = None
    max_unreadable: float = SHARE
    trust_classes: bool = False
    allow_download: bool = False
    batch_size: int | None = None
    workers: int | None = None
    timeout: float = stalls.LIMIT
    trainer: dict[str, Any] = field(default_factory=dict)

    def asides(self, predictor: Predictor) -> list[Aside | HeatMaps]:
        """Returns the folders for flagged images, and for maps of them."""
        copies = [] if self.copy_ood is None else [Aside(self.copy_ood, self.link)]
        return copies if self.heat_maps is None else [*copies, HeatMaps(self.heat_maps, predictor)]

    @property
    def further(self) -> list[str]:
        """The columns of predictions that only some requests have."""
        return [name for name in FURTHER if getattr(self, name)]

    def tolerated(self) -> Tolerated:
        """Returns a counter of the images that cannot be read, which starts at none."""
        listed = None if self.out is None else beside(self.out)
        return Tolerated(self.paths, Tolerance(self.max_unreadable, "--max-unreadable"), listed)


def conduct(request: Request) -> Counts | None:
    """Judges all images, prints or writes the predictions, and counts them on standard error.

    It returns None except in the first process, and for a shard. Raises: ValueError for a run that cannot judge, before its encoder is loaded.
    """
    stalls.wait_at_most(request.timeout)
    if request.adapt is not None:
        return adapt(request, judging_trainer(request))
    saved = SavedDetector(request.run, request.trust_classes)
    saved.check_encodes()
    columns = saved.chosen(request.detector)
    decisions = decisions_of(saved, columns, request.accept, request.fdr, request.per_class)
    saved.check_words(request.words)
    if request.heat_maps is not None:
        saved.check_local(columns[0])
    trainer = judging_trainer(request)
    if request.fdr is not None and trainer.is_global_zero and request.shard is None:
        _caution(decisions, request.paths)
    joins = trainer.is_global_zero and request.shard is None
    with watched(request, saved, columns[0]) if joins else nullcontext() as watch:
        with redirect_stdout(sys.stderr):  # downloads are announced on stderr, because predictions may go to a program
            backbone = saved.backbone(request.encoder, request.allow_download)
        rules = (request.accept, request.fdr, request.nearest, request.per_class, request.words)
        predictor = Predictor(saved, backbone, columns, *rules)
        go = _print if request.out is None else _write
        counts = go(request, saved, predictor, trainer, watch)
        if watch is not None:
            watch.save()
            counts.alarmed = watch.alarmed
    if counts is not None:
        _tell(counts, predictor, request, watch)
    return counts


def _caution(decisions: list[BatchDecision], paths: list[str]) -> None:
    """Says how many images must be odd at the same time before any is flagged."""
    images = sum(source.reason is None for source in sources(paths))
    for line in dict.fromkeys(filter(None, (each.caution(images) for each in decisions))):
        tell(line)


def _print(
    request: Request, saved: SavedDetector, predictor: Predictor, trainer: Trainer, watch: Watched | None
) -> Counts:
    held: list[Line] = []
    tolerated = request.tolerated().take

    def hold(line: Line) -> None:
        tolerated(line)
        held.append(line)

    to = (request.tolerated(), predictor.columns, request.asides(predictor), request.further)
    with printed(request.format, *to) as predictions:
        take = predictions.take if watch is None else watch.after(predictions.take)
        printer = PredictionPrinter(take if request.fdr is None else hold)
        judge(request, predictor, trainer, printer)
        if request.fdr is not None:
            for line in _decided(lambda: held, request.fdr):
                take(line)
    return predictions.counts


def _write(
    request: Request, saved: SavedDetector, predictor: Predictor, trainer: Trainer, watch: Watched | None
) -> Counts | None:
    folder = request.out.with_name(f"{request.out.name}.parts")
    size = request.batch_size or predictor.batch_size
    rules = [predictor.accept, request.nearest, request.words, request.per_class]
    about = [saved.manifest["digest"], predictor.columns, *rules, size, versions()]
    parts = PredictionParts(folder, digest(about), request.tolerated().take)
    if request.engine == "ray":
        from clip_ood.experiments.ray_engine import judge_by_ray  # imports ray

        judge_by_ray(request, predictor.columns, predictor.backbone.transform, size, BATCHES, parts)
    count = judge(request, predictor, trainer, parts, parts.is_whole, BATCHES)  # what is not there yet
    trainer.strategy.barrier("judged")
    if parts.unfit:
        tell(f"{parts.unfit:,} parts in {folder} were of other inputs or settings, and were judged anew")
    if request.shard is not None:
        tell(f"Shard {request.shard} is judged: {folder} holds its share of the {count:,} parts of the inputs")
    if not trainer.is_global_zero or request.shard is not None:
        return None
    exact = request.out.suffix.lower() == ".parquet" and any(not_utf8(line["path"]) for line in parts.read(count))
    to = (request.tolerated(), predictor.columns, request.asides(predictor), request.further, exact)
    with written(request.out, *to) as predictions:
        take = predictions.take if watch is None else watch.after(predictions.take)
        for line in parts.read(count) if request.fdr is None else _decided(lambda: parts.read(count), request.fdr):
            take(line)
    parts.remove()
    return predictions.counts


def _decided(lines: Callable[[], Iterable[Line]], fdr: float) -> Iterator[Line]:
    """Reads the lines twice, and says in the predictions among them which images are OOD at the false discovery rate."""
    flagged = cutoffs(((line["detector"], line["p_value"]) for line in lines() if "error" not in line), fdr)
    for line in lines():
        yield line if "error" in line else line | {"is_ood": line["p_value"] <= flagged[line["detector"]]}


def judge(
    request: Request, predictor: Predictor, trainer: Trainer, writer: Callback, is_whole=not_yet, batches: int = 1
) -> int:
    """Judges what is not there yet, and returns the number of parts."""
    size = request.batch_size or predictor.batch_size
    again, shard = (lambda: sources(request.paths)), request.shard or WHOLE
    data = NewImages(again, is_whole, predictor.backbone.transform, size, batches, request.workers, shard)
    predict(trainer, PredictionModule(predictor), data, writer)
    if data.parts is None:
        raise UserError("Not all inputs were judged: Lightning stopped before their end")
    return data.parts


def judging_trainer(request: Request) -> Trainer:
    """Makes the Trainer that judges. Raises: ConfigError for several devices that cannot see the same inputs, or print."""
    ours = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    ours["enable_progress_bar"] = request.out is not None and sys.stderr.isatty()
    trainer = new_trainer({"devices": 1} | ours, request.trainer, "--trainer.")
    if trainer.world_size > 1 and request.engine == "ray":
        raise ConfigError("--engine ray has its own workers (--actors, --gpus): leave --trainer.devices out")
    if any(map(is_stream, request.paths)) and (request.engine == "ray" or request.shard is not None):
        raise ConfigError(
            "Several processes read the inputs, and each can read a pipe only for itself: give a list in a file"
        )
    if trainer.world_size > 1 and (request.out is None or any(map(is_stream, request.paths))):
        raise ConfigError(
            f"{trainer.world_size} devices need inputs that each can read, and a file to write to: give --out FILE, and a list "
            "in a file instead of standard input"
        )
    return trainer


def _tell(counts: Counts, predictor: Predictor, request: Request, watch: Watched | None) -> None:
    """Prints the summary on standard error."""
    for path, reason in counts.shown:
        tell(f"not judged: {path}: {reason}")
    if counts.failed > len(counts.shown):
        where = f"see {beside(request.out)}" if request.out else "with --out FILE all of them are listed"
        tell(f"not judged: {counts.failed - len(counts.shown):,} more: {where}")
    if request.odd and counts.copies:
        tell(
            f"{counts.copies:,} of the {counts.judged:,} images judged {_copies(counts.copies)} of the run (column copy_of), which counts "
            "them as ID: they are left out of the shares below"
        )
    judged = counts.judged - counts.copies if request.odd else counts.judged
    for place, each in enumerate(predictor.decisions):
        ood = flagged(counts.patterns, place) if request.odd else counts.ood[each.column]
        interval = f"; {interval_told(ood, judged)}" if request.odd and judged else ""
        share = f" ({100 * ood / judged:.1f} %{interval})" if judged else ""
        tell(
            f"{judged:,} images judged, {ood:,} of them OOD{share}: {each.told(judged, ood)}"
            + (f"; {counts.failed:,} could not be judged" if counts.failed else "")
        )
    if request.odd and judged > 1 and len(predictor.columns) > 1:
        tell(choice_told(predictor.columns, counts.patterns))
    if counts.copies and not request.odd:
        tell(_about_copies(counts.copies, predictor))
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
    if request.heat_maps is not None and counts.ood[predictor.column]:
        tell(
            f"Heat maps of the OOD images, by {predictor.column}: {request.heat_maps}; vermilion is least like the ID images"
        )
    if watch is not None:
        tell(watch.told())
    tell(_next(counts, predictor, request))


def _about_copies(copies: int, predictor: Predictor) -> str:
    """Says that images were judged that the run has learnt from, and what their scores are."""
    seen = [
        name
        for name, each in zip(predictor.columns, predictor.detectors, strict=True)
        if each.learns and not each.leaves_one_out and name not in predictor.images.scores
    ]
    how = (
        f"{', '.join(seen)} {'has' if len(seen) == 1 else 'have'} seen them, so that these scores say nothing; evaluation.cross_fit "
        "would score them without"
        if seen
        else "each was scored without itself, and its p-value is only its rank among them"
    )
    return f"{copies:,} of these images {_copies(copies)} of the run (column copy_of): {how}"


def _copies(number: int) -> str:
    return "is a copy of an ID image" if number == 1 else "are copies of ID images"


def _next(counts: Counts, predictor: Predictor, request: Request) -> str:
    """Returns the next step: to look at the images that were flagged, or to ask the other detectors."""
    command = [*called("detect").split(), "--run", str(request.run)]
    few = request.paths if len(request.paths) < MANY else [request.paths[0], "..."]
    rules = {"--accept": request.accept, "--fdr": request.fdr}
    same = [
        *command,
        *few,
        *(text for key, value in rules.items() if value is not None for text in (key, f"{value:g}")),
        *(["--per-class"] if request.per_class else []),
    ]
    if counts.ood[predictor.column] and request.copy_ood is None:
        what = "copy the OOD images together and look at them"
        return next_step([*same, "--detector", predictor.column, "--copy-ood", "odd/"], what)
    if len(predictor.columns) == 1:
        return next_step([*same, "--detector", "all"], "ask all detectors of the run in one pass")
    return next_step([*command, "--export", "model.onnx"], "write encoder and detectors as one file")
