"""Conducts the runs of a study; those that are finished are left alone."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

from clip_ood.config.resuming import FREE, MACHINE, differences
from clip_ood.config.schema import Config
from clip_ood.errors import UserError
from clip_ood.experiments.kept_decisions import keep_decisions, kept_in
from clip_ood.experiments.resume import begun_with, check_resumed
from clip_ood.experiments.study.plan import Plan
from clip_ood.runs.results_files import write_json
from clip_ood.runs.run_folder import CONFIG, FINISHED, is_follower, read_results
from clip_ood.terminal.shown import say


class State(Enum):
    """The state of a study's run: how much of it is done."""

    DONE = "done"
    UNSCORED = "unscored"  # finished with other detectors, or other files beside the results; its head stays
    MISSING = "missing"  # or unfinished, or seeds were added


def state(plan: Plan, run: str) -> State:
    """Returns the state of a run of the study.

    Raises: ConfigError if its folder holds a run with other settings.
    """
    folder, wanted = plan.folder / run, plan.runs[run]
    if not (folder / CONFIG).is_file():
        return State.MISSING
    sets = {"data.ood", "data.csid"} if plan.study.leaves_out else set()  # more of them may be here now
    check_resumed(wanted, folder, FREE | {"detectors"} | sets)
    was = begun_with(folder)
    if not (folder / FINISHED).is_file() or set(was.seeds) != set(wanted.seeds):
        return State.MISSING
    read_results(folder)
    return State.UNSCORED if differences(was, wanted, MACHINE) else State.DONE


def conduct(plan: Plan) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Conducts the runs that are missing or unfinished.

    Returns the content of each results.json by run, and the reason by run for those that could not be done; other
    runs do not wait for these. Raises: what the runs raise, if none could be done.
    """
    states = {run: state(plan, run) for run in plan.runs}
    missing = [run for run, each in states.items() if each is not State.DONE]
    failed: dict[str, str] = {}
    kept = _keep_decisions(plan)
    for number, run in enumerate(missing, start=1):
        if not is_follower():
            say(f"[{number}/{len(missing)}] {run}", flush=True)
        try:
            (_score if states[run] is State.UNSCORED else _run)(plan.runs[run], plan.folder / run, kept)
        except UserError as error:
            if len(failed) + 1 == len(plan.runs):
                raise
            failed[run] = str(error)
            if not is_follower():
                say(f"left out: {error}", flush=True)
    if is_follower():
        return {}, failed
    done = [run for run in plan.runs if run not in failed]
    return {run: read_results(plan.folder / run) for run in done}, failed


def _keep_decisions(plan: Plan) -> Path | None:
    """Returns the copy of data.decisions that all runs of the study read, None if they name none or several."""
    files, begun = {each.data.decisions for each in plan.runs.values()}, any(plan.folder.glob(f"*/{CONFIG}"))
    if len(files) > 1 or None in files:
        return None
    if not is_follower():
        plan.folder.mkdir(parents=True, exist_ok=True)
    keep_decisions(next(iter(plan.runs.values())), plan.folder, begun=begun)
    return kept if (kept := kept_in(plan.folder)).is_file() else None


def _run(config: Config, folder: Path, kept: Path | None) -> None:
    from clip_ood.experiments.seeds import experiment  # torch and Lightning

    if not is_follower():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FINISHED).unlink(missing_ok=True)  # it had fewer seeds
    experiment(config, folder, decisions=kept)


def _score(config: Config, folder: Path, kept: Path | None) -> None:
    """Scores a run's heads with other detectors; what the heads were trained on stays in the results."""
    from clip_ood.experiments.seeds import experiment

    trained_on = read_results(folder)["trained_on"]
    if not is_follower():
        (folder / FINISHED).unlink(missing_ok=True)
    if results := experiment(config, folder, folder, kept):
        write_json(folder / FINISHED, results | {"trained_on": trained_on})
