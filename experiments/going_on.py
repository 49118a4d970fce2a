"""What a script says in its last line: how to go on with what Ctrl-C has stopped, or what the next sensible step is."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.run_folder import CONFIG, FINISHED, is_follower, seed_folder, unreported
from experiments.shortages import Shortage, lack


@contextmanager
def stoppable(way_on: Callable[[], str]) -> Iterator[None]:
    """Around long work: Ctrl-C ends it with one line that says how to go on, and what the machine lacks is told with that line.

    Raises: KeyboardInterrupt, whatever was made of it; Shortage.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stopped:
        if not isinstance(stopped, KeyboardInterrupt) and not isinstance(stopped.__context__, KeyboardInterrupt):
            raise  # Lightning makes an exit of Ctrl-C
        if not is_follower():
            print(f"\nStopped. {way_on()}", file=sys.stderr)
        raise KeyboardInterrupt from None
    except Exception as error:
        if (told := lack(error)) is None or is_follower():
            raise
        raise Shortage(f"{told}. {way_on()}") from error


def resume_line(script: str, argv: list[str] | None, folder: Path) -> str:
    """How to go on with the run in `folder`, or how to begin it again where nothing of it is kept but features."""
    if (folder / FINISHED).is_file():
        there = unreported(folder)
        anew = (
            f"Start anew with: {again(script, argv)}" if "--overwrite" in (sys.argv if argv is None else argv) else ""
        )
        return " ".join(filter(None, [f"{folder} holds a finished run, which is kept.", there, anew]))
    if (folder / CONFIG).is_file():
        return f"Go on with: {again(script, argv, add=['--resume'], drop=['--overwrite'])}"
    return f"Nothing was trained yet, and features are kept. Start again with: {again(script, argv)}"


def again(script: str, argv: list[str] | None, add: Iterable[str] = (), drop: Iterable[str] = ()) -> str:
    """The command line of this call, for a shell.

    >>> again("train.py", ["--config", "a b.yaml", "--overwrite"], add=["--resume"], drop=["--overwrite"])
    "python train.py --config 'a b.yaml' --resume"
    """
    given = [each for each in (sys.argv[1:] if argv is None else argv) if each not in drop]
    return shlex.join(["python", script, *given, *(each for each in add if each not in given)])


def next_step(command: Iterable[str], what: str) -> str:
    """The line that names the next step.

    >>> next_step(["python", "detect.py", "--run", "runs/a b", "photos/"], "judge new images")
    "Next: to judge new images, python detect.py --run 'runs/a b' photos/"
    """
    return f"Next: to {what}, {shlex.join(command)}"


def after_run(folder: Path, seeds: list[int], judges: bool, tested: bool) -> str:
    """The next step after a run: to judge new images, where its detector has thresholds; else to look at it beside another one,
    where it was tested against OOD images, or to test it."""
    if judges:
        run = seed_folder(folder, seeds[0]) if seeds else folder
        return next_step(["python", "detect.py", "--run", str(run), "photos/"], "judge new images")
    if not tested:
        return (
            f"Next: look at the scores in {folder}, or test them against OOD images with --data.ood='{{NAME: FOLDER}}'"
        )
    compared = ["python", "eval.py", "--compare", str(folder), str(folder.with_name("OTHER"))]
    return next_step(compared, "show it beside another run")
