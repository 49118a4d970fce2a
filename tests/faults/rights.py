"""Folders that cannot be written: caches are done without, a full store is enough, and where results would go is told at once."""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from shortage_lab import bound_by_rights

from faults import lab, process
from faults.steps import command, commands, made, undisturbed
from faults.trial import Trial

BINDING = ExitStack()


def trials() -> list[Trial]:
    without = [
        Trial(f"{name}, without a home and a cache", partial(_without_cache, name), name == "detect")
        for name in commands()
    ]
    told = [
        Trial(f"{name}, whose folder of results cannot be written", partial(_told, name), name == "train")
        for name in commands()
        if name != "study"
    ]
    read = [
        Trial(f"{name}, out of a store that is only read", partial(_read_only, name), name == "eval")
        for name in ("train", "sweep", "fine-tune", "seeds", "eval")
    ]
    return [*without, *told, *read]


def _bound(home: bool = True) -> None:
    BINDING.enter_context(bound_by_rights())
    if not home:
        os.environ.pop("HOME", None)


def _without_cache(name: str, folder: Path) -> None:
    whole = undisturbed(name)[1]
    ended = process.run(
        command(name, folder), folder / "said.log", partial(_bound, False), XDG_CACHE_HOME="/dev/null/x"
    )
    assert ended.status == 0 and made(folder) == whole, ended.said


def _told(name: str, folder: Path) -> None:
    lab.shared()
    line = command(name, folder)
    place = folder if name == "detect" else folder / "runs"
    place.mkdir(exist_ok=True)
    place.chmod(0o555)
    try:
        ended = process.run(line, Path(f"{folder}.log"), _bound)
    finally:
        place.chmod(0o755)
        Path(f"{folder}.log").unlink(missing_ok=True)
    (told,) = ended.said.strip().splitlines()
    assert ended.status == 2 and f"{place}" in told and "Permission denied" in told, ended.said


def _read_only(name: str, folder: Path) -> None:
    line = command(name, folder)
    assert process.run(line, folder / "first.log").status == 0
    before = made(folder)
    store = folder / "features"
    for place in [store, *store.rglob("*")]:
        place.chmod(0o555 if place.is_dir() else 0o444)
    try:
        ended = process.run([*line, "--overwrite"], folder / "second.log", _bound)
    finally:
        for place in [store, *(each for each in store.rglob("*") if each.is_dir())]:
            place.chmod(0o755)
    assert ended.status == 0 and made(folder) == before, ended.said
