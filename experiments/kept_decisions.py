"""Keeps what data.decisions says when a run begins, since people may go on to decide while it runs, and before it is resumed or scored.

A run's folder holds a copy of the file (`DECIDED`). All processes, seeds and resumptions of the run read the copy, as do those who score
or describe it later.
"""

from __future__ import annotations

from pathlib import Path

from clip_ood.config.checks import decisions_of
from clip_ood.config.schema import Config
from clip_ood.experiments.resume import begun_with
from clip_ood.files.writing import written_whole
from clip_ood.runs.run_folder import CONFIG, DECIDED, is_follower
from clip_ood.terminal.shown import say


def keep_decisions(config: Config, folder: Path, kept: Path | None = None, begun: bool | None = None) -> None:
    """Copies data.decisions into the folder of a run, unless the run has begun with a copy.

    kept: the copy that another run has, which counts in place of the file; begun: whether a run has begun in the folder (None: if it holds a
    config). Raises: ConfigError for a file that is not there or holds something else.
    """
    if config.data.decisions is None or is_follower():
        return
    source, copy = kept or config.data.decisions, folder / DECIDED
    begun = (folder / CONFIG).is_file() if begun is None else begun
    if begun and copy.is_file():
        if source.is_file() and source.read_bytes() != copy.read_bytes():
            say(
                f"data.decisions: {source} has changed since this run was begun, which goes on with what it said then ({copy}); a new "
                "run carries out what it says now",
                flush=True,
            )
        return
    if kept is None:
        decisions_of(config.data)
    with written_whole(copy) as file:
        file.write(source.read_bytes())


def as_kept(config: Config, kept: Path | None) -> Config:
    """Returns the config with the decisions in a copy, if there is one, in place of the file that it names."""
    if config.data.decisions is None or kept is None or not kept.is_file():
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"decisions": kept})})


def kept_in(folder: Path) -> Path:
    """Returns the path of the copy that a run in this folder has, if data.decisions is set."""
    return folder / DECIDED


def kept_by(run: Path | None, config: Config) -> Path | None:
    """Returns the copy of another run, if that run was begun with the same data.decisions and has one."""
    if run is None or config.data.decisions is None or not kept_in(run).is_file():
        return None
    return kept_in(run) if begun_with(run).data.decisions == config.data.decisions else None
