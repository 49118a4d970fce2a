"""A run's folder: a new one, the next number, or the one to go on with."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from configs.loading import ConfigError

FINISHED = "results.json"


def choose_folder(root: Path, name: str, resume: bool = False, overwrite: bool = False) -> Path:
    """The folder `root/name` for a run, or `root/name-2` … where a finished run has that name already.

    Raises: ConfigError for an unfinished run, unless it is to be resumed or overwritten, and for `resume` without one.
    """
    if not name or Path(name).name != name:
        raise ConfigError(f"name: {name!r} must be a plain folder name, without slashes")
    folder = root / name
    if is_follower():
        return folder  # only the first process writes, and it has chosen already
    if overwrite and folder.exists():
        shutil.rmtree(folder)
    number = 1
    while (folder / FINISHED).is_file():
        number += 1
        folder = root / f"{name}-{number}"
    if folder.exists() and any(folder.iterdir()):
        if not resume:
            raise ConfigError(
                f"{folder} holds an unfinished run. Add --resume to go on with it, or --overwrite to start anew."
            )
    elif resume:
        raise ConfigError(f"There is no unfinished run {root / name} to resume. Leave --resume out to start one.")
    if number > 1:
        print(
            f"{root / name} holds a finished run, which is kept: this one goes to {folder}. (--overwrite replaces it.)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def is_follower() -> bool:
    """Whether this process was started beside a first one that keeps the run's folder."""
    return any(os.environ.get(key, "0") != "0" for key in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
