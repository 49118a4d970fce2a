"""Signals at every stage: each ends the command with its status and one line, leaves no half file, and the command that the line
names comes to the results of one that was never stopped."""

from __future__ import annotations

import json
import re
import shlex
import signal
from functools import partial
from pathlib import Path

from filelock import FileLock

from faults import lab, moments
from faults.process import Ended, run
from faults.trial import Trial

STAGES = 6  # of each command, equally far apart
ENDS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129, signal.SIGUSR1: 143}
SLURM = {"SLURM_JOB_ID": "7"}
LINE = re.compile(
    r"^Stopped\. (?:.*(?:Go on|Start again) with: python (.*)|.* is finished, and kept\..*)$", re.MULTILINE
)


def trials() -> list[Trial]:
    signals, found = list(ENDS), []
    for place, command in enumerate(lab.COMMANDS):
        for stage in range(STAGES):
            number = signals[(place + stage) % len(signals)]
            name = f"{number.name} to {command} after {stage + 1} of {STAGES + 1} parts"
            sample = (command, stage) in (("train", 4), ("detect", 3))
            found.append(Trial(name, partial(_stop, command, number, stage), sample))
    return found


def _stop(command: str, number: signal.Signals, stage: int, folder: Path) -> None:
    whole, count = _whole(command)
    moment = max(1, count * (stage + 1) // (STAGES + 1))
    environment = SLURM if number is signal.SIGUSR1 else {}
    asked = lab.COMMANDS[command](folder)
    ended = run(asked, folder / "log", partial(moments.send, number, moment), **environment)
    words = stopped(ended, ENDS[number])
    left = [path for path in folder.rglob("*") if ".tmp" in path.suffixes]
    assert not left, left
    if words:
        ended = run(words, folder / "log")
        assert ended.status == 0, ended.said
    assert results(folder) == whole


def stopped(ended: Ended, status: int) -> list[str]:
    """The command that the one line of a stopped command names, nothing where all was done."""
    assert ended.status == status and not ended.traceback, f"status {ended.status}:\n{ended.said}"
    lines = LINE.findall(ended.said)
    assert len(lines) == 1, ended.said
    return shlex.split(lines[0])


def results(folder: Path) -> dict[str, object]:
    """What a command has found: its tables, scores and predictions."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        place = str(path.relative_to(folder))
        if path.name == "scores.parquet" or path.suffix == ".csv":
            found[place] = path.read_bytes()
        elif path.name == "results.json":
            found[place] = json.loads(path.read_text())["rows"]
    assert found
    return found


def _whole(command: str) -> tuple[dict[str, object], int]:
    """The results of the command when nothing stops it, and its number of moments; found once."""
    folder = lab.shared() / f"whole-{command}"
    with FileLock(f"{folder}.lock"):
        if not (folder / "count").is_file():
            folder.mkdir()
            ended = run(lab.COMMANDS[command](folder), folder / "log", partial(moments.count, folder / "count"))
            assert ended.status == 0, ended.said
    return results(folder), int((folder / "count").read_text())
