"""One run, or one a seed with the mean and standard deviation of their results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from callbacks.results_files import write_json, write_mean_table
from callbacks.results_table import print_table
from configs.loading import dump
from configs.schema import Config
from experiments.run import run
from experiments.run_folder import FINISHED, head_of, is_follower, seed_folder, started
from experiments.summary import summarise
from reports.page import REPORT
from reports.run_page import write_seeds_report


def conduct(config: Config, folder: Path, source: Path | None = None) -> None:
    """As `experiment`, and prints the table."""
    if results := experiment(config, folder, source):
        print_table(results)
        print(f"Results: {folder}")
        if config.evaluation.report:
            print(f"Report: {folder / REPORT}")


def experiment(config: Config, folder: Path, source: Path | None = None) -> dict[str, Any]:
    """Runs an experiment in `folder`, once or once a seed: the content of its results.json, {} beside the first process.

    With `source`, heads are taken from that run instead of being trained.
    """
    trained = source is not None and config.method.name != "zero_shot"
    if not config.seeds:
        return run(config, folder, head_of(source) if trained else None)
    with started(folder, dump(config)):
        for seed in config.seeds:
            _run_seed(config, seed, folder, head_of(seed_folder(source, seed)) if trained else None)
    return {} if is_follower() else _summarise(config, folder)


def _run_seed(config: Config, seed: int, folder: Path, head: Path | None) -> None:
    place = seed_folder(folder, seed)
    if (place / FINISHED).is_file():
        return  # of the run that is resumed
    if not is_follower():
        place.mkdir(exist_ok=True)
        print(f"seed {seed}", flush=True)
    run(config.model_copy(update={"seed": seed, "seeds": []}), place, head)


def _summarise(config: Config, folder: Path) -> dict[str, Any]:
    content = summarise(folder, config.seeds)
    write_mean_table(folder / "results.csv", content["rows"])
    write_json(folder / FINISHED, content)
    if config.evaluation.report:
        write_seeds_report(folder)
    return content
