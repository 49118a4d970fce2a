"""Carries out `--plan`: looks ahead at the runs of a command, and reports."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from clip_ood.config.given import GIVEN
from clip_ood.config.schema import Config
from clip_ood.errors import ConfigError
from clip_ood.experiments.attack.pairs import check_pairs
from clip_ood.experiments.attack.plan import Plan as AttackPlan
from clip_ood.experiments.attack.plan import check_resumed as check_resumed_attack
from clip_ood.experiments.attack.plan import check_source
from clip_ood.experiments.attack.scoring import check_score
from clip_ood.experiments.forecast.forecast import Forecast, look_ahead
from clip_ood.experiments.forecast.making import making_of, writings_of
from clip_ood.experiments.forecast.runs import attack_runs, single_runs
from clip_ood.experiments.forecast.tell import tell
from clip_ood.experiments.resume import check_heads, check_resumed
from clip_ood.experiments.study.conduct import State, state
from clip_ood.experiments.study.plan import Plan
from clip_ood.process.launchers import processes
from clip_ood.runs.run_folder import free_folder
from clip_ood.terminal.console import Terminal


def plan_experiment(config: Config, source: Path | None, resume: bool, overwrite: bool) -> int:
    """Tells what an experiment would find and need; returns the exit status, 1 if it would stop.

    `source` is the run whose heads it takes.
    """
    if config.backbone.library == GIVEN:
        raise ConfigError(
            "--plan tells what is to be encoded, and features that are given are encoded already: leave it out"
        )
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


def plan_attack(plan: AttackPlan, resume: bool, overwrite: bool) -> int:
    """As `plan_experiment`, of an attack: the run as it is, the images that are made, and the runs that score them."""
    attack, config = plan.attack, plan.config
    forecast, folder = Forecast(), attack.runs_root / attack.name
    with forecast.checking():
        folder = free_folder(attack.runs_root, attack.name, resume, overwrite)
    if resume:
        with forecast.checking():
            check_resumed_attack(plan, folder)
    with forecast.checking():
        check_source(plan)
    forecast.making = making_of(plan, folder, processes(config.trainer), begun=resume)
    shape = forecast.encoder(config).shape
    with forecast.checking():
        forecast.writings += writings_of(plan, folder, forecast.making, shape and shape.width)
    runs = list(attack_runs(plan, folder, begun=resume))
    with _looking():
        look_ahead(runs, forecast)
        if (benchmark := forecast.runs[0].benchmark) is not None:
            with forecast.checking():
                check_pairs(attack, benchmark)
            with forecast.checking():
                check_score(plan, benchmark)
    return tell(forecast)


def _told(runs, forecast: Forecast) -> int:
    with _looking():
        look_ahead(runs, forecast)
    return tell(forecast)


def _looking() -> AbstractContextManager:
    return Terminal().status("Looking at images, features and disks")
