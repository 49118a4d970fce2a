"""Words the last line of a script: how to continue what was stopped, or the next sensible step."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clip_ood.process.called import called
from clip_ood.process.lost import reason
from clip_ood.process.shortages import Shortage, lack
from clip_ood.process.stopping import FAILED, Stopped, ending
from clip_ood.runs.run_folder import CONFIG, FINISHED, GROUPS, LABELS, SUSPECTS, is_follower, seed_folder, unreported
from clip_ood.terminal.shown import one_line

MADE = ("checkpoints/*.ckpt", "*/checkpoints/*.ckpt")  # checkpoints of a run and of its seeds


@contextmanager
def stoppable(way_on: Callable[[], str]) -> Iterator[None]:
    """Wraps long work: whatever ends it early, one line says how to go on. A shortage of the machine is reported with that line.

    Raises: KeyboardInterrupt, whatever was made of it; Shortage.
    """
    ending.way_on, ending.told = way_on, False
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stopped:
        if ending.status is None:
            if not isinstance(stopped, KeyboardInterrupt) and not isinstance(stopped.__context__, KeyboardInterrupt):
                raise  # Lightning turns Ctrl-C into an exit
            ending.why = "Stopped."
            ending.tell()
            raise KeyboardInterrupt from None
        ending.tell()
        raise
    except Exception as error:
        if (told := lack(error)) is None or is_follower():
            raise
        raise Shortage(f"{told}. {way_on()}") from error


@contextmanager
def ended_early() -> Iterator[None]:
    """Wraps a command. Raises: Stopped if something asked for its end, whatever error that looks like here."""
    try:
        yield
    except BaseException as error:
        if ending.status is None and isinstance(error, Exception) and (why := reason(error)):
            ending.ask(FAILED, f"error: {why}")
        if ending.status is None:
            raise
        raise Stopped(ending.status) from None


def resume_line(command: str, argv: list[str] | None, folder: Path) -> str:
    """Says what is kept of the run in `folder` and how to continue it, or how to begin it again if only features are kept."""
    kept = "features are kept (but for the last 1,024 images a process)"
    there = unreported(folder) if (folder / FINISHED).is_file() else ""
    if there or ((folder / FINISHED).is_file() and "--overwrite" not in (sys.argv if argv is None else argv)):
        return f"{folder} is finished, and kept.{there and f' {there}'}"
    if not (folder / CONFIG).is_file() or (folder / FINISHED).is_file():
        return f"Nothing was trained yet, and {kept}. Start again with: {again(command, argv)}"
    if any(any(folder.glob(made)) for made in MADE):
        kept = "features and whole epochs are kept, and an epoch that was begun is trained again"
    return f"{kept[0].upper()}{kept[1:]}. Go on with: {again(command, argv, add=['--resume'], drop=['--overwrite'])}"


def again(command: str, argv: list[str] | None, add: Iterable[str] = (), drop: Iterable[str] = ()) -> str:
    """Returns the command line of this call, for a shell.

    >>> again("train", ["--config", "a b.yaml", "--overwrite"], add=["--resume"], drop=["--overwrite"])
    "python train.py --config 'a b.yaml' --resume"
    """
    given = [each for each in (sys.argv[1:] if argv is None else argv) if each not in drop]
    return as_typed([*called(command).split(), *given, *(each for each in add if each not in given)])


def as_typed(command: Iterable[str]) -> str:
    """Returns a command line for a shell; characters that may not be shown are escapes that Bash and Zsh take.

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
    """Returns the line that names the next step.

    >>> next_step([*called("detect").split(), "--run", "runs/a b", "photos/"], "judge new images")
    "Next: to judge new images, python detect.py --run 'runs/a b' photos/"
    """
    return f"Next: to {what}, {as_typed(command)}"


def after_run(folder: Path, seeds: list[int], judges: bool, tested: bool, given: bool = False) -> str:
    """Returns the next step after a run: to judge new images, or features if they were `given`, if its detector has thresholds.

    Otherwise it is to compare it with another run if it was tested against OOD images, or to test it.
    """
    if judges:
        run = seed_folder(folder, seeds[0]) if seeds else folder
        if given:
            return f"Next: to judge new features, an array (N, D), in Python: clip_ood.load({str(run)!r})(array)"
        return next_step([*called("detect").split(), "--run", str(run), "photos/"], "judge new images")
    if not tested:
        return (
            f"Next: look at the scores in {folder}, or test them against OOD images with --data.ood='{{NAME: FOLDER}}'"
        )
    compared = [*called("eval").split(), "--compare", str(folder), str(folder.with_name("OTHER"))]
    return next_step(compared, "show it beside another run")


def suspects_told(folder: Path, ranked: Mapping[str, Any], given: bool) -> str:
    """Says where a run's images are ranked, how many groups lie apart, and, unless features were `given`, how to look at them."""
    groups = ranked["groups"]
    apart = f"{len(groups)} {'group lies' if len(groups) == 1 else 'groups lie'} apart ({', '.join(f'{size:,}' for size in groups[:5])}"
    apart += " images)" if len(groups) <= 5 else ", … images)"
    told = (
        f"Suspects: {folder / SUSPECTS} ranks {ranked['images']:,} images, most suspect first; "
        f"{apart + f', see {folder / GROUPS}' if groups else 'no group lies apart'}"
    )
    review = as_typed([*called("review").split(), "--run", str(folder)])
    return told if given else f"{told}. To decide about them: {review}"


def seeds_told(folder: Path, seeds: Iterable[int], results: Mapping[str, Any]) -> list[str]:
    """Says where each seed of a run has what is not averaged; `results` is the results.json of one seed.

    >>> seeds_told(Path("runs/a"), [0, 1], {"suspects": {"labels": None}, "held_out": None})
    ['Suspects, by each seed: runs/a/seed-0/suspects.csv, runs/a/seed-1/suspects.csv']
    """
    ranked = results.get("suspects")
    files = {"Suspects": ranked and SUSPECTS, "Doubtful labels": ranked and ranked["labels"] and LABELS}
    files |= {"AUROC with classes held out (held_out)": results.get("held_out") and FINISHED}
    return [
        f"{what}, by each seed: {', '.join(str(seed_folder(folder, seed) / file) for seed in seeds)}"
        for what, file in files.items()
        if file
    ]


def labels_told(folder: Path, checked: Mapping[str, Any]) -> str:
    """Says how many labels are doubtful, and where they are listed.

    >>> labels_told(Path("runs/a"), {"checked": 154, "doubtful": 9, "wrong": 12.3})
    'Labels: about 12 of 154 are wrong, or of classes that look alike to the encoder; runs/a/labels.csv lists the 9 most doubtful'
    """
    wrong = f"about {checked['wrong']:,.0f} of {checked['checked']:,} are wrong, or of classes that look alike to the encoder"
    if not checked["doubtful"]:
        return f"Labels: {wrong}; none clearly resembles another class"
    return f"Labels: {wrong}; {folder / LABELS} lists the {checked['doubtful']:,} most doubtful"


def held_out_told(held_out: Mapping[str, Any]) -> str:
    """Says which detectors told classes that were held out from the others best.

    >>> held_out_told({"groups": [{}, {}], "mean": {"knn": 0.951, "mcm": 0.8}})
    'With classes held out as OOD images (2 groups), mean AUROC: knn 95.1, mcm 80.0'
    """
    best = ", ".join(f"{name} {100 * value:.1f}" for name, value in list(held_out["mean"].items())[:4])
    return f"With classes held out as OOD images ({len(held_out['groups'])} groups), mean AUROC: {best}"
