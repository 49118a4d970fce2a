"""Chooses and reads a run's folder: a new one, the next number, or the one to continue."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from clip_ood.errors import ConfigError, UserError
from clip_ood.files.records import Damaged
from clip_ood.files.writing import check_writable, write_text
from clip_ood.naming import folder_fault, one_text
from clip_ood.process.called import called
from clip_ood.process.locks import alone
from clip_ood.process.ranks import is_first
from clip_ood.review.decisions_file import FILE as DECISIONS
from clip_ood.terminal.shown import say

if TYPE_CHECKING:
    import pyarrow as pa

CONFIG = "config.yaml"  # is there once a run was started
IMAGES = "images.json"  # the images that it trains on and scores
DECIDED = "decided.csv"  # what data.decisions said when the run began
CONTENTS = "contents.json"  # identifies their contents, and the encoder
FINISHED = "results.json"
SCORES = "scores.parquet"
JOINT = "joint.csv"  # accuracy and rejection together
STREAM = "stream.csv"  # test-time methods
CLASSES = "classes.csv"  # by ID class and OOD folder
REPORT = "report.html"
UNREADABLE = "unreadable.csv"  # the images that were left out
LEAKS = "leaks.csv"  # the images that stand in several sets, or several times in one
SUSPECTS = "suspects.csv"  # the training images, most suspect first, if they were scored
GROUPS = "groups.csv"  # the groups among them that lie apart
LABELS = "labels.csv"  # the labels among theirs that are probably wrong


@contextmanager
def chosen_folder(root: Path, name: str, resume: bool = False, overwrite: bool = False) -> Iterator[Path]:
    """Chooses as `choose_folder` does, and keeps all other runs out of the folder from before the choice. Raises: InUse."""
    if is_follower():
        yield choose_folder(root, name, resume, overwrite)
        return
    _check_choice(root, name, resume, overwrite)
    folder = root / name
    while True:
        with alone_in(folder):
            if (free := _free(root, name, overwrite)) == folder:
                yield choose_folder(root, name, resume, overwrite)
                return
        folder = free


def choose_folder(root: Path, name: str, resume: bool = False, overwrite: bool = False) -> Path:
    """Returns the folder `root/name` for a run, or `root/name-2` … if a finished run has that name already.

    `overwrite` sets aside what is there, if it is a run (see `replacing`), but for its decisions.csv, which stays. Raises: ConfigError for an unfinished run, unless
    it is to be resumed or overwritten, for `resume` without one, for both at once, and for a name that some systems take for
    another one's.
    """
    _check_choice(root, name, resume, overwrite)
    if overwrite and not is_follower() and (root / name / CONFIG).is_file():
        aside = _aside(root / name)
        if aside.is_dir() and not (root / name / FINISHED).is_file():  # a run was killed while it replaced another
            _move_decisions(root / name, aside)
            shutil.rmtree(root / name)
        else:
            shutil.rmtree(aside, ignore_errors=True)
            (root / name).rename(aside)
    if overwrite and not is_follower():
        _move_decisions(_aside(root / name), root / name)
    if is_follower():
        folder = _free(root, name, overwrite)
        check_twin(folder)
        return folder  # the first process chooses, and only it writes
    folder = free_folder(root, name, resume, overwrite)
    if folder != root / name:
        say(f"{root / name} holds a finished run, which is kept: this one goes to {folder}. (--overwrite replaces it.)")
        if there := unreported(root / name):
            say(there)
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder)
    return folder


def free_folder(root: Path, name: str, resume: bool = False, overwrite: bool = False) -> Path:
    """Returns the folder that `choose_folder` would take, without making it or setting anything aside.

    Raises as `choose_folder` does.
    """
    _check_choice(root, name, resume, overwrite)
    folder = _free(root, name, overwrite)
    check_twin(folder)
    unfinished = (folder / CONFIG).is_file() and not overwrite
    if unfinished and not resume:
        raise ConfigError(
            f"{folder} holds an unfinished run. Add --resume to go on with it, or --overwrite to start anew."
        )
    if resume and not unfinished:
        raise _nothing_to_resume(root / name)
    check_writable(folder)
    return folder


def _check_choice(root: Path, name: str, resume: bool, overwrite: bool) -> None:
    check_name(name)
    check_twin(root / name)
    if resume and overwrite:
        raise ConfigError("--resume goes on with a run and --overwrite starts it anew: give one of them")
    if resume and not root.is_dir():
        raise _nothing_to_resume(root / name)


def _free(root: Path, name: str, overwrite: bool) -> Path:
    """Returns the folder of that name, or the first with a number, that holds no finished run."""
    folder, number = root / name, 1
    while not overwrite and (folder / FINISHED).is_file():
        number += 1
        folder = root / f"{name}-{number}"
    return folder


def _nothing_to_resume(folder: Path) -> ConfigError:
    there = unreported(folder) if (folder / FINISHED).is_file() else ""
    return ConfigError(
        f"There is no unfinished run {folder} to resume. Leave --resume out to start one.{there and f' {there}'}"
    )


def check_name(name: str, key: str = "name") -> None:
    """Raises ConfigError for anything but a plain folder name, here or on another system."""
    if reason := folder_fault(name):
        raise ConfigError(f"{key}: {name!r} must be a plain folder name, without slashes; it {reason}")


def check_twin(folder: Path) -> None:
    """Raises ConfigError if a folder beside this one differs from it only in case, Unicode's form or blanks."""
    beside = sorted(path.name for path in folder.parent.iterdir()) if folder.parent.is_dir() else []
    if folder.name in beside:
        return
    if twin := next((name for name in beside if one_text(name) == one_text(folder.name)), None):
        raise ConfigError(
            f"name: {folder.parent / twin} is there, and {folder.name!r} differs from it in case or Unicode's form alone: some "
            f"systems take both for one. Choose another name, or that one as it stands ({twin!r})"
        )


@contextmanager
def replacing(folder: Path) -> Iterator[None]:
    """Wraps a run in `folder` that replaces another one, which `choose_folder` has set aside.

    The old run is removed when this one ends well, and comes back if this one ends in an error before it trained or finished.
    """
    aside = _aside(folder)
    try:
        yield
    except BaseException:
        if (folder / FINISHED).is_file() and not is_follower():
            shutil.rmtree(aside, ignore_errors=True)  # what failed came after the results
        elif aside.is_dir() and not is_follower():
            if not _worth_keeping(folder):
                for listed in folder.rglob(UNREADABLE):
                    kept = listed.replace(folder.with_name(f"{folder.name}.{UNREADABLE}"))
                    say(f"The list of the images that could not be read is kept in {kept}")
                _move_decisions(folder, aside)
                shutil.rmtree(folder, ignore_errors=True)
                aside.rename(folder)
            else:
                say(f"The run that was to be replaced is kept in {aside}")
        raise
    if not is_follower():
        shutil.rmtree(aside, ignore_errors=True)


def _move_decisions(source: Path, target: Path) -> None:
    """Moves what people decided from one folder to the other, unless there is some already."""
    if (source / DECISIONS).is_file() and not (target / DECISIONS).exists():
        target.mkdir(parents=True, exist_ok=True)
        (source / DECISIONS).replace(target / DECISIONS)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def _worth_keeping(folder: Path) -> bool:
    """Says whether something was trained in a run's folder, or a run within it finished."""
    return any(any(folder.glob(kept)) for kept in ("checkpoints", "*/checkpoints", f"*/{FINISHED}", FINISHED))


def seed_folder(run: Path, seed: int) -> Path:
    """Returns the sub-folder of one seed of a run over several."""
    return run / f"seed-{seed}"


def of_seed(run: Path, seed: int) -> Path:
    """Returns the sub-folder of one seed if the run has it, otherwise the run itself."""
    return folder if (folder := seed_folder(run, seed)).is_dir() else run


def head_of(run: Path) -> Path:
    """Returns the checkpoint that a trained run keeps, the one of its last step."""
    return run / "checkpoints" / "last.ckpt"


@contextmanager
def started(folder: Path, config: str) -> Iterator[None]:
    """Marks `folder` as a run by writing its config.

    An error leaves a finished run alone, and a resumed run as it was begun. It unmarks a new run if nothing was trained in it or
    in a run within it, and no run within it finished.
    """
    if is_follower():
        yield
        return
    with alone_in(folder):
        begun = (folder / CONFIG).read_text(encoding="utf-8") if (folder / CONFIG).is_file() else None
        write_text(folder / CONFIG, config)
        try:
            yield
        except Exception as error:
            if (folder / FINISHED).is_file():
                pass  # what failed came after the results
            elif begun is not None:
                with suppress(OSError):  # the disk is full, and the first error says so
                    write_text(folder / CONFIG, begun)
            elif isinstance(error, ValueError | OSError) and not _worth_keeping(folder):
                (folder / CONFIG).unlink()
                for about in (IMAGES, CONTENTS, DECIDED):
                    (folder / about).unlink(missing_ok=True)
            raise


def alone_in(folder: Path, what: str = "this run") -> AbstractContextManager[None]:
    """Keeps other processes out of a folder that the first process of one run, or study, writes.

    Raises: InUse if another process works there.
    """
    if is_follower():
        return nullcontext()
    return alone(
        folder,
        f"wait until it ends, or give {what} another --name. If a launcher has started several processes for one run, let "
        "trainer.devices be their number",
    )


def read_results(folder: Path) -> dict[str, Any]:
    """Reads a finished run's results.json. Raises: ConfigError for a damaged one, and for that of an attack."""
    from clip_ood.runs.files import read_results as read  # imports torch and pyarrow, which are not needed before

    if is_attack(folder):
        raise ConfigError(
            f"{folder} is an attack, whose pictures and tables lie beside its {FINISHED}, and no run of an experiment"
        )
    with scored_again():
        return read(folder / FINISHED)


def is_attack(folder: Path) -> bool:
    """Says whether the results in a folder are those of an attack."""
    from clip_ood.files.records import read_json

    try:
        content = read_json(folder / FINISHED)
    except (UserError, OSError):  # it is damaged or not there, which is reported when it is read
        return False
    return isinstance(content, dict) and content.get("kind") == "attack"


def read_scores(folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads the scores.parquet of a single run or seed, or some of its columns. Raises: ConfigError for a damaged one."""
    from clip_ood.runs.files import read_scores as read

    with scored_again():
        return read(folder / SCORES, columns)


@contextmanager
def scored_again() -> Iterator[None]:
    """Wraps the reading of a finished run's files. Raises: ConfigError, with the way out, for a damaged or missing file."""
    try:
        yield
    except (Damaged, FileNotFoundError) as error:
        told = f"{error.filename} is missing" if isinstance(error, OSError) else error
        raise ConfigError(
            f"{told}. Remove the results.json in its folder, and of a run over several seeds that of the whole too: the command "
            "that made the run, with --resume, then scores what was trained there again"
        ) from error


def unreported(run: Path) -> str:
    """Says that a finished run, or one of its seeds, lacks the report that it should have; otherwise it is the empty string.

    Such a run was killed, or its report could not be written.
    """
    lacking = [each for each in (run, *run.glob("seed-*")) if _lacks_report(each)]
    return (
        f"{lacking[0]} has no report yet: {shlex.join([*called('eval').split(), '--report', str(run)])} writes it"
        if lacking
        else ""
    )


def check_report(run: Path) -> None:
    """Raises: ConfigError if a finished run lacks the report that it should have."""
    if not is_follower() and (there := unreported(run)):
        raise ConfigError(there)


def _lacks_report(run: Path) -> bool:
    if not (run / FINISHED).is_file() or (run / REPORT).is_file():
        return False
    try:
        return yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))["evaluation"]["report"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):  # it is damaged, or of another version
        return False


def is_follower() -> bool:
    """Says whether this process was started beside a first one that keeps the run's folder."""
    return not is_first()
