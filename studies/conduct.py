"""The runs of a study, those that are finished left alone."""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path
from typing import Any

from configs.errors import ConfigError
from configs.loading import dump, load_config
from configs.schema import Config
from experiments.run_folder import CONFIG, FINISHED, is_follower
from studies.plan import Plan


def finished(plan: Plan, run: str) -> bool:
    """Whether a run of the study is there.

    Raises: ConfigError where its folder holds one of other settings.
    """
    folder = plan.folder / run
    if not (folder / CONFIG).is_file():
        return False
    if (was := load_config(str(folder / CONFIG))) != plan.runs[run]:
        raise ConfigError(
            f"{folder} was begun with other settings ({_difference(dump(was), dump(plan.runs[run]))}). Give the study "
            "another --name, or add --overwrite to do it anew"
        )
    return (folder / FINISHED).is_file()


def conduct(plan: Plan) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Conducts the runs that are missing or unfinished.

    Returns the content of each results.json by run, and the reason by run for those that could not be done, which other
    runs do not wait for. Raises: what the runs raise, where none could be done.
    """
    missing = [run for run in plan.runs if not finished(plan, run)]
    failed: dict[str, str] = {}
    for number, run in enumerate(missing, start=1):
        if not is_follower():
            print(f"[{number}/{len(missing)}] {run}", flush=True)
        try:
            _run(plan.runs[run], plan.folder / run)
        except ValueError as error:
            if len(failed) + 1 == len(plan.runs):
                raise
            failed[run] = str(error)
            if not is_follower():
                print(f"left out: {error}", flush=True)
    if is_follower():
        return {}, failed
    done = [run for run in plan.runs if run not in failed]
    return {run: json.loads((plan.folder / run / FINISHED).read_text(encoding="utf-8")) for run in done}, failed


def _run(config: Config, folder: Path) -> None:
    from experiments.seeds import experiment  # torch and Lightning

    folder.mkdir(parents=True, exist_ok=True)
    experiment(config, folder)


def _difference(was: str, now: str) -> str:
    """The first line that differs."""
    pairs = zip_longest(was.splitlines(), now.splitlines(), fillvalue="")
    before, after = next((a, b) for a, b in pairs if a != b)
    return f"{before.strip()} → {after.strip()}"
