"""The disk is full from one of a command's steps on: one line says which file and what is kept, and with room again it goes on."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from faults import process
from faults.steps import at_step, command, commands, go_on, made, undisturbed
from faults.trial import Trial

PARTS = {"train": 20, "sweep": 8, "fine-tune": 12, "seeds": 8, "eval": 12, "detect": 10, "attack": 12, "study": 10}


def trials() -> list[Trial]:
    return [
        Trial(
            f"{name}, with the disk full from {part + 1} of {PARTS[name]} of its steps on",
            partial(_full, name, part),
            (name, part) in (("train", 12), ("detect", 5)),
        )
        for name in commands()
        for part in range(PARTS[name])
    ]


def _full(name: str, part: int, folder: Path) -> None:
    steps, whole = undisturbed(name)
    number = steps[part * len(steps) // PARTS[name]]
    status, said = _said(command(name, folder), folder / "said.fifo", partial(at_step, f"{folder}/", number, "full"))
    assert "Traceback" not in said and "Exception ignored" not in said, said
    if status:
        errors = [
            line for line in said.splitlines() if line.startswith("error: ") or "report could not be written: " in line
        ]
        assert status == 2 and errors, f"{status}: {said}"
        assert any(f"{folder}/" in line and "File too large" in line for line in errors), said
    again = go_on(name, folder) if status else ""
    found = made(folder)
    assert found.keys() == whole.keys(), f"{found.keys() ^ whole.keys()}\n{said}\n{again}"
    other = [path for path in whole if whole[path] != found[path]]
    assert not other, f"{other} differ\n{said}\n{again}"


def _said(line: list[str], pipe: Path, before: partial) -> tuple[int, str]:
    """A command's exit status, and what it prints into a pipe, which is no file that could not grow."""
    os.mkfifo(pipe)
    descriptor = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        ended = process.run(line, pipe, before)
        try:
            return ended.status, os.read(descriptor, 2**20).decode(errors="backslashreplace")
        except BlockingIOError:
            return ended.status, ""
    finally:
        os.close(descriptor)
        pipe.unlink()
