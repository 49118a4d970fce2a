"""kill -9 at a command's steps on its files; going on gives what an undisturbed command gives, byte for byte."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

from faults import process
from faults.steps import at_step, command, commands, go_on, made, undisturbed
from faults.trial import Trial

PARTS = {"train": 20, "sweep": 8, "fine-tune": 12, "seeds": 8, "eval": 12, "detect": 10, "attack": 12, "study": 10}


def trials() -> list[Trial]:
    return [
        Trial(
            f"{name}, killed at {part + 1} of {PARTS[name]} of its steps",
            partial(_killed, name, part),
            part == 3 and name == "train",
        )
        for name in commands()
        for part in range(PARTS[name])
    ]


def _killed(name: str, part: int, folder: Path) -> None:
    steps, whole = undisturbed(name)
    number = steps[part * len(steps) // PARTS[name]]
    ended = process.run(command(name, folder), folder / "killed.log", partial(at_step, f"{folder}/", number, "kill"))
    assert ended.status == -signal.SIGKILL, ended.said
    said = go_on(name, folder)
    found = made(folder)
    assert found.keys() == whole.keys(), f"{found.keys() ^ whole.keys()}\n{said}"
    other = [path for path in whole if whole[path] != found[path]]
    assert not other, f"{other} differ\n{said}"
