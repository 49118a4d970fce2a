"""Draws a finished run from its own files: its loggers' pages and report.html. Whatever fails there, the run stays finished."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.loggers import Logger

from clip_ood.command_line import answer
from clip_ood.config.schema import Config
from clip_ood.data.benchmark import Benchmark
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.experiments.kept_decisions import as_kept, kept_in
from clip_ood.experiments.logged import describe, log_figure
from clip_ood.experiments.loggers import check_loggers, ending_trackers, label, make_loggers
from clip_ood.experiments.patch_maps import patch_maps
from clip_ood.experiments.resume import begun_with, check_images
from clip_ood.report.figures import figures
from clip_ood.report.run_page import write_report, write_seeds_report
from clip_ood.runs.run_folder import alone_in, head_of, read_results, seed_folder
from clip_ood.runs.scores import read_scores
from clip_ood.terminal.shown import say


def draw(folder: Path, config: Config, benchmark: Benchmark, loggers: Sequence[Logger]) -> None:
    """Gives the loggers of the run in `folder` its figures, settings and table, then writes its report, as far as its config asks
    for them.

    If the report cannot be written, that is said, and later commands notice its absence (`run_folder.unreported`).
    Raises: whatever is raised, if no report is asked for.
    """
    try:
        _draw(folder, config, loggers)
        if config.evaluation.report:
            write_report(folder, benchmark, patch_maps(folder, config, benchmark))
    except Exception as error:
        if not config.evaluation.report:
            raise
        _tell(folder, error)


def draw_seeds(folder: Path) -> None:
    """Writes the report of a run over several seeds; if it cannot, it does as `draw` does."""
    try:
        write_seeds_report(folder)
    except Exception as error:
        _tell(folder, error)


def draw_again(folder: Path) -> Path:
    """Draws what `draw` does for a finished run, and for each of its seeds, and returns the path of its report.

    Raises: ConfigError for anything but a finished run, and for a run whose images have changed.
    """
    read_results(folder)
    config = begun_with(folder)
    with alone_in(folder):
        if not config.seeds:
            return _again(folder, config)
        for seed in config.seeds:
            _again(seed_folder(folder, seed), config.model_copy(update={"seed": seed, "seeds": []}))
        return write_seeds_report(folder)


def _again(folder: Path, config: Config) -> Path:
    benchmark = load_benchmark(as_kept(config, kept_in(folder)))
    check_images(folder, benchmark)
    check_loggers(config.trainer)
    with ending_trackers():
        _draw(folder, config, make_loggers(config.trainer, folder, label(config, folder)))
    return write_report(folder, benchmark, patch_maps(folder, config, benchmark))


def _draw(folder: Path, config: Config, loggers: Sequence[Logger]) -> None:
    if loggers and config.evaluation.figures:
        step = _steps(folder)
        for name, figure in figures(read_scores(folder / "scores.parquet")):
            for logger in loggers:
                log_figure(logger, name, figure, step)
    for logger in loggers:
        describe(logger, config, read_results(folder))


def _steps(folder: Path) -> int:
    """Returns the number of steps for which a run has trained its head."""
    head = head_of(folder)
    return torch.load(head, map_location="cpu", weights_only=True, mmap=True)["global_step"] if head.is_file() else 0


def _tell(folder: Path, error: Exception) -> None:
    told = answer(error) or "".join(traceback.format_exception(error))
    say(f"{folder} is finished, but its report could not be written: {told}", file=sys.stderr, flush=True)
