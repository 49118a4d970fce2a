"""New images through a finished run: from a request to verdicts and their summary."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from callbacks.verdict_writer import VerdictParts, VerdictPrinter
from clip_ood.backbones.fingerprint import digest
from clip_ood.judging.judge import Judge
from clip_ood.judging.saved import SavedDetector
from clip_ood.versions import versions
from configs.errors import ConfigError
from datamodules.inputs import STDIN, sources
from datamodules.judged_images import JudgedImages
from experiments.quiet import hush
from experiments.trainer import new_trainer
from experiments.verdicts import Counts, printed, written
from lightning_modules.judging import Judging

hush()

BATCHES = 64  # of a part: a killed run loses at most so many


@dataclass(frozen=True)
class Request:
    """What detect.py was asked: the run, the inputs, and how (None: as the run has it)."""

    run: Path
    paths: list[str]
    detector: str | None = None
    accept: float | None = None
    encoder: str | None = None
    out: Path | None = None
    format: str = "csv"
    move_ood: Path | None = None
    link: bool = False
    trust_classes: bool = False
    allow_download: bool = False
    batch_size: int | None = None
    workers: int | None = None
    trainer: dict[str, Any] = field(default_factory=dict)


def conduct(request: Request) -> Counts | None:
    """Judges all images, prints or writes the verdicts, tells how many on standard error; None beside the first process.

    Raises: ValueError for a run that cannot judge, before its encoder is loaded.
    """
    saved = SavedDetector(request.run, request.trust_classes)
    column = request.detector or saved.columns[0]
    accept = saved.accept if request.accept is None else request.accept
    saved.calibration(column).threshold(accept)
    trainer = _trainer(request)
    with redirect_stdout(sys.stderr):  # what is downloaded is said there: verdicts may go to a program
        backbone = saved.backbone(request.encoder, request.allow_download)
    judge = Judge(saved, backbone, column, accept)
    go = _print if request.out is None else _write
    counts = go(request, saved, judge, trainer)
    if counts is not None:
        _tell(counts, judge, request)
    return counts


def _print(request: Request, saved: SavedDetector, judge: Judge, trainer: Trainer) -> Counts:
    with printed(request.format, request.move_ood, request.link) as verdicts:
        trainer.callbacks.append(VerdictPrinter(verdicts.take))
        _predict(request, judge, trainer, lambda part, sources: False, batches=1)
    return verdicts.counts


def _write(request: Request, saved: SavedDetector, judge: Judge, trainer: Trainer) -> Counts | None:
    folder = request.out.with_name(f"{request.out.name}.parts")
    size = request.batch_size or judge.batch_size
    about = [saved.manifest["digest"], judge.column, judge.accept, size, versions()]
    parts = VerdictParts(folder, digest(about))
    trainer.callbacks.append(parts)
    count = _predict(request, judge, trainer, parts.is_whole, BATCHES)
    trainer.strategy.barrier("judged")
    if not trainer.is_global_zero:
        return None
    with written(request.out, request.move_ood, request.link) as verdicts:
        for line in parts.read(count):
            verdicts.take(line)
    parts.remove()
    return verdicts.counts


def _predict(request: Request, judge: Judge, trainer: Trainer, is_whole, batches: int) -> int:
    """Judges what is not there; the number of parts."""
    size = request.batch_size or judge.batch_size
    data = JudgedImages(lambda: sources(request.paths), is_whole, size, batches, request.workers)
    trainer.predict(Judging(judge), datamodule=data, return_predictions=False)
    if data.parts is None:
        raise ValueError("Not all inputs were judged: Lightning stopped before their end")
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
    if trainer.world_size > 1 and (request.out is None or STDIN in request.paths):
        raise ConfigError(
            f"{trainer.world_size} devices need inputs that each can read, and a file to write to: give --out FILE, and a list "
            "in a file instead of standard input"
        )
    return trainer


def _tell(counts: Counts, judge: Judge, request: Request) -> None:
    """The summary, on standard error: standard output may be read by a program."""

    def say(line: str) -> None:
        told = (each if each.isprintable() else each.encode("unicode_escape").decode() for each in line)
        print("".join(told), file=sys.stderr)  # a name can hold what steers a terminal

    for path, reason in counts.shown:
        say(f"not judged: {path}: {reason}")
    if counts.failed > len(counts.shown):
        where = f": see {request.out}.unreadable.csv" if request.out else ""
        say(f"not judged: {counts.failed - len(counts.shown):,} more{where}")
    share = f" ({100 * counts.ood / counts.judged:.1f} %)" if counts.judged else ""
    say(
        f"{counts.judged:,} images judged, {counts.ood:,} of them OOD{share}: {judge.column} below {judge.threshold:.6g}, which "
        f"accepts {100 * judge.expected:.1f} % of new ID images (calibrated on {len(judge.calibration):,})"
        + (f"; {counts.failed:,} could not be judged" if counts.failed else "")
    )
    for path, reason in counts.left_shown:
        say(f"judged, but not set aside: {path}: {reason}")
    if counts.left > len(counts.left_shown):
        say(f"judged, but not set aside: {counts.left - len(counts.left_shown):,} more")
    if request.out is not None:
        say(f"Verdicts: {request.out}")
    if request.move_ood is not None and counts.ood:
        say(f"OOD images: {request.move_ood}")
