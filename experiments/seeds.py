"""Conducts one run, or one for each seed with the mean and standard deviation of their results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clip_ood.config.given import GIVEN
from clip_ood.config.loading import dump
from clip_ood.config.resuming import MACHINE, differences
from clip_ood.config.schema import Config
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.experiments.checkpoints import check_checkpoint
from clip_ood.experiments.kept_decisions import as_kept, keep_decisions, kept_by, kept_in
from clip_ood.experiments.reporting import draw_seeds
from clip_ood.experiments.resume import begun_with, check_images
from clip_ood.experiments.run import run
from clip_ood.runs.few_images import held_out_cautions, ranks_caution
from clip_ood.runs.going_on import after_run, held_out_told, labels_told, seeds_told, suspects_told
from clip_ood.runs.results_files import write_json, write_mean_table
from clip_ood.runs.results_table import print_table
from clip_ood.runs.run_folder import (
    CONFIG,
    FINISHED,
    REPORT,
    STREAM,
    head_of,
    is_follower,
    read_results,
    seed_folder,
    started,
)
from clip_ood.runs.stream_files import write_stream
from clip_ood.runs.summary import summarise
from clip_ood.terminal.shown import say


def conduct(config: Config, folder: Path, source: Path | None = None) -> None:
    """Does what `experiment` does, and prints the table."""
    is_given = config.backbone.library == GIVEN
    if results := experiment(config, folder, source):
        print_table(results)
        say(f"Results: {folder}")
        for line in (
            seeds_told(folder, config.seeds, read_results(seed_folder(folder, config.seeds[0]))) if config.seeds else ()
        ):
            say(line)
        if ranked := results.get("suspects"):
            say(suspects_told(folder, ranked, is_given))
            if caution := ranks_caution(ranked["images"]):
                say(caution)
            if ranked["labels"]:
                say(labels_told(folder, ranked["labels"]))
        if held_out := results.get("held_out"):
            say(held_out_told(held_out))
            for caution in held_out_cautions(held_out):
                say(caution)
        if (folder / REPORT).is_file():
            say(f"Report: {folder / REPORT}")
        say(after_run(folder, config.seeds, _judges(config, results), bool(results["rows"]), is_given))


def _judges(config: Config, results: dict[str, Any]) -> bool:
    """Says whether detect.py can judge images by a run, or by every seed of one."""
    stated = results["calibration"] if config.seeds else [results["calibration"]]
    return config.evaluation.save_detector and all(each and each["thresholds"] for each in stated or [None])


def experiment(
    config: Config, folder: Path, source: Path | None = None, decisions: Path | None = None
) -> dict[str, Any]:
    """Runs an experiment in `folder`, once or once for each seed.

    Returns the content of its results.json, or {} except in the first process. With `source`, heads are taken from that run
    instead of being trained; with `decisions`, this copy counts in place of data.decisions, as does the one that `source` has.
    """
    keep_decisions(config, folder, decisions or kept_by(source, config))
    trained = source is not None and config.method.settings.trains
    if not config.seeds:
        return run(config, folder, head_of(source) if trained else None)
    if not is_follower():
        for seed in config.seeds:  # finished ones too, because the mean is over the same images
            place = seed_folder(folder, seed)
            if (place / FINISHED).is_file():
                read_results(place)
            if (head := head_of(seed_folder(source, seed) if trained else place)).is_file():
                check_checkpoint(head)
            if (place / CONFIG).is_file():
                check_images(place, load_benchmark(as_kept(of_seed(config, seed), kept_in(place))))
    with started(folder, dump(config)):
        for seed in config.seeds:
            _run_seed(config, seed, folder, head_of(seed_folder(source, seed)) if trained else None)
    return {} if is_follower() else _summarise(config, folder)


def _run_seed(config: Config, seed: int, folder: Path, head: Path | None) -> None:
    place, config = seed_folder(folder, seed), of_seed(config, seed)
    if is_done(config, place):
        return  # the resumed run has them
    if not is_follower():
        place.mkdir(exist_ok=True)
        (place / FINISHED).unlink(missing_ok=True)  # it has other detectors or files beside the results
        keep_decisions(config, place, kept_in(folder))
        say(f"seed {seed}", flush=True)
    run(config, place, head)


def is_done(config: Config, place: Path) -> bool:
    """Says whether the run of one seed in `place` is finished under these settings."""
    return (place / FINISHED).is_file() and not differences(begun_with(place), config, MACHINE)


def of_seed(config: Config, seed: int) -> Config:
    """Returns the config of a single run of those over several seeds."""
    return config.model_copy(update={"seed": seed, "seeds": []})


def _summarise(config: Config, folder: Path) -> dict[str, Any]:
    content = summarise(folder, config.seeds)
    (folder / REPORT).unlink(missing_ok=True)  # of earlier results
    write_mean_table(folder / "results.csv", content["rows"])
    write_stream(folder / STREAM, content["stream"])
    write_json(folder / FINISHED, content)
    if config.evaluation.report:
        draw_seeds(folder)
    return content
