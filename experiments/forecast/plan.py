"""Carries out `--plan`: looks ahead at the runs of a command, and reports."""

from __future__ import annotations

from pathlib import Path

from clip_ood.config.schema import Config
from clip_ood.experiments.forecast.forecast import Forecast, look_ahead
from clip_ood.experiments.forecast.runs import single_runs
from clip_ood.experiments.forecast.tell import tell
from clip_ood.experiments.resume import check_heads, check_resumed
from clip_ood.experiments.study.conduct import State, state
from clip_ood.experiments.study.plan import Plan
from clip_ood.runs.run_folder import free_folder
from clip_ood.terminal.console import Terminal


def plan_experiment(config: Config, source: Path | None, resume: bool, overwrite: bool) -> int:
    """Tells what an experiment would find and need; returns the exit status, 1 if it would stop.

    `source` is the run whose heads it takes.
    """
    forecast, folder = Forecast(), config.runs_root / config.name
    with forecast.checking():
        folder = free_folder(config.runs_root, config.name, resume, overwrite)
    if resume:
        with forecast.checking():
            check_resumed(config, folder)
    if source is not None and config.method.settings.trains:
        with forecast.checking():
            check_heads(source, config)
    runs = []
    with forecast.checking():
        runs += single_runs(config.name, config, folder, source, resume)
    return _told(runs, forecast)


def plan_study(plan: Plan, overwrite: bool) -> int:
    """Does what `plan_experiment` does for the runs of a study that are not finished."""
    forecast, runs = Forecast(), []
    for name, config in plan.runs.items():
        there, folder = State.MISSING, plan.folder / name
        with forecast.checking(name):
            there = State.MISSING if overwrite else state(plan, name)
        if there is not State.DONE:
            source = folder if there is State.UNSCORED else None
            with forecast.checking(name):
                runs += single_runs(name, config, folder, source, begun=not overwrite)
    return _told(runs, forecast)


def _told(runs, forecast: Forecast) -> int:
    with Terminal().status("Looking at images, features and disks"):
        look_ahead(runs, forecast)
    return tell(forecast)
