"""What a script says in its last line: how to go on with what Ctrl-C has stopped, or what the next sensible step is."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clip_ood.shown import one_line, say
from experiments.run_folder import CONFIG, FINISHED, is_follower, seed_folder


@contextmanager
def stoppable(way_on: Callable[[], str]) -> Iterator[None]:
    """Around long work: Ctrl-C ends it with one line that says how to go on. Raises: KeyboardInterrupt, whatever was made of it."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stopped:
        if not isinstance(stopped, KeyboardInterrupt) and not isinstance(stopped.__context__, KeyboardInterrupt):
            raise  # Lightning makes an exit of Ctrl-C
        if not is_follower():
            say(f"\nStopped. {way_on()}", file=sys.stderr)
        raise KeyboardInterrupt from None


def resume_line(script: str, argv: list[str] | None, folder: Path) -> str:
    """How to go on with the run in `folder`, or how to begin it again where nothing of it is kept but features."""
    if (folder / CONFIG).is_file() and not (folder / FINISHED).is_file():
        return f"Go on with: {again(script, argv, add=['--resume'], drop=['--overwrite'])}"
    return f"Nothing was trained yet, and features are kept. Start again with: {again(script, argv)}"


def again(script: str, argv: list[str] | None, add: Iterable[str] = (), drop: Iterable[str] = ()) -> str:
    """The command line of this call, for a shell.

    >>> again("train.py", ["--config", "a b.yaml", "--overwrite"], add=["--resume"], drop=["--overwrite"])
    "python train.py --config 'a b.yaml' --resume"
    """
    given = [each for each in (sys.argv[1:] if argv is None else argv) if each not in drop]
    return as_typed(["python", script, *given, *(each for each in add if each not in given)])


def as_typed(command: Iterable[str]) -> str:
    """A command line for a shell, of characters that may be shown: others stand as escapes that Bash and Zsh take.

    >>> print(as_typed(["rm", "a b", "caf\\udce9's"]))
    rm 'a b' $'caf\\xe9\\'s'
    """
    return " ".join(shlex.quote(word) if one_line(word) == word else _escaped(word) for word in command)


def _escaped(word: str) -> str:
    plain = word.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(each if one_line(each) == each else _bytes(each) for each in plain) + "'"


def _bytes(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def next_step(command: Iterable[str], what: str) -> str:
    """The line that names the next step.

    >>> next_step(["python", "detect.py", "--run", "runs/a b", "photos/"], "judge new images")
    "Next: to judge new images, python detect.py --run 'runs/a b' photos/"
    """
    return f"Next: to {what}, {as_typed(command)}"


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
