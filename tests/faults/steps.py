"""The steps at which a command changes its folder: a file opened to be written, brought to the disk, renamed or removed.

`at_step` is called in the command's own process; `undisturbed` has run each command once, and says what it did and made.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import sys
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock

from faults import lab, process

REPORTED = {"figures": False, "report": True}
WATCHED = {"os.rename": 1, "os.remove": 0}  # audit events, and which argument names the file
NAMES_APART = re.compile(
    r"[0-9a-f]{32}|[0-9a-f]{8}-\d{7}-|tfevents\.[\w.-]+|/tmp[\w]{8}$"
)  # what differs from run to run
LOOSE = re.compile(
    r"tfevents|\.ckpt$|/features/|\.lock(\.json)?$|\.log$|hparams\.yaml$|parts/"
)  # files that are not compared


def at_step(folder: str, number: int, act: str, record: str = "") -> None:
    """From here on counts the steps in `folder`; at the one of this number the process is killed (`kill`), or the disk is full for
    all that follows (`full`). The steps are listed in the file `record`."""
    steps = count(1)
    listed = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if record else None

    def step(what: str, path: Any) -> None:
        path = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        if not path.startswith(folder):
            return
        if listed is not None:
            os.write(listed, f"{what} {NAMES_APART.sub('', path.removeprefix(folder))}\n".encode())
        if next(steps) == number:
            os.kill(os.getpid(), signal.SIGKILL) if act == "kill" else fill()

    def hook(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            step("write", arguments[0])
        elif event in WATCHED:
            step(event.removeprefix("os."), arguments[WATCHED[event]])

    sys.addaudithook(hook)
    synced = os.fsync

    def fsync(descriptor: int) -> None:
        step("sync", os.readlink(f"/proc/self/fd/{descriptor}"))
        synced(descriptor)

    os.fsync = fsync


def fill() -> None:
    """From here on no file of this process can grow, whatever writes it: as on a full disk, and no rights are needed (Python ignores the
    signal that the system then sends)."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def commands() -> list[str]:
    return list(lab.COMMANDS)


def command(name: str, folder: Path) -> list[str]:
    """A command of the lab's, whose runs have reports."""
    line = lab.COMMANDS[name](folder)
    for config in folder.glob("*.yaml"):
        text = config.read_text()
        config.write_text(text.replace("report: false", "report: true"))
    return line


def undisturbed(name: str) -> tuple[list[int], dict[str, bytes]]:
    """The numbers of a command's steps, of several on one file the first and the last, and the files that it makes."""
    folder = lab.shared() / "undisturbed" / name
    with FileLock(lab.shared() / f"{name}.lock"):
        if not (folder / "whole").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            begin = partial(at_step, f"{folder}/", 0, "", f"{folder}/steps.log")
            ended = process.run(command(name, folder), folder / "said.log", begin)
            assert ended.status == 0, ended.said
            (folder / "whole").touch()
    steps = (folder / "steps.log").read_text().splitlines()
    first = {step: number for number, step in reversed([*enumerate(steps, start=1)])}
    last = {step: number for number, step in enumerate(steps, start=1)}
    return sorted({*first.values(), *last.values()}), made(folder)


def made(folder: Path) -> dict[str, bytes]:
    """What a command has made in a folder, without what holds times or the folder's own name."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if (
            path.is_file()
            and "/" in name.removesuffix(path.name) + "." * (path.suffix == ".csv")
            and not LOOSE.search(f"/{name}")
        ):
            found[name] = path.read_bytes().replace(os.fsencode(folder), b"FOLDER")
    return found


def go_on(name: str, folder: Path) -> str:
    """Goes on with what was stopped, as its messages say: all that was printed."""
    line, said = command(name, folder), ""
    unfinished = (
        name != "study" and not any(folder.glob("runs/*/results.json")) and any(folder.glob("runs/*/config.yaml"))
    )
    finished = any(folder.glob("runs/*/results.json"))
    if (folder / "predictions.csv").exists():
        return ""
    if unfinished:
        said = _answered(line, folder, "Add --resume to go on with it")
    if finished and name != "study":
        if name == "attack" or any(folder.glob("runs/*/report.html")):
            return ""
        said = _answered([*line, "--resume"], folder, "eval.py --report ")
    else:
        ended = process.run([*line, *(["--resume"] if unfinished else [])], folder / "again.log")
        said += ended.said
        if ended.status == 0:
            return said
        assert ended.status == 2 and not ended.traceback, said
    for run in re.findall(r"eval\.py --report (\S+) writes it", said):
        ended = process.run(["eval.py", "--report", run], folder / "again.log")
        assert ended.status == 0, ended.said
    return said


def _answered(line: list[str], folder: Path, told: str) -> str:
    """What a command says that ends with an error at once."""
    ended = process.run(line, folder / "again.log")
    assert ended.status == 2 and told in ended.said and not ended.traceback, ended.said
    return ended.said
