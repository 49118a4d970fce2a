"""Checks files that a command will write: their names, and that nothing there is lost."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from clip_ood.errors import ConfigError
from clip_ood.files.writing import check_writable, temporary_name
from clip_ood.process.locks import alone, sharing
from clip_ood.process.ranks import is_first

LONGEST_NAME = 255  # bytes of a file's name, on most systems


def check_kept(option: str, path: Path) -> None:
    """Raises ConfigError for a file that cannot be gone on from and written anew."""
    check_suffix(option, path, (".safetensors",))
    if not path.parent.is_dir():
        raise ConfigError(f"{option}: there is no folder {path.parent}")
    if (size := len(os.fsencode(temporary_name(path)))) > LONGEST_NAME:
        raise ConfigError(
            f"{option}: the name of {path.name} is too long by {size - LONGEST_NAME} bytes for the file that is written beside it: take "
            "a shorter one"
        )
    if path.is_symlink() and not path.exists():
        raise ConfigError(f"{option}: {path} is a link to a file that is not there: name that file, and it is made")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{option}: {path} is no file")
    check_writable(path.resolve().parent)


@contextmanager
def alone_at_file(arguments: argparse.Namespace) -> Iterator[None]:
    """Keeps other calls from the file of --out or --export; shards of one file let each other work.

    Raises: InUse; ConfigError if another call has made it meanwhile.
    """
    option, path = ("--out", arguments.out) if arguments.export is None else ("--export", arguments.export)
    if path is None or not is_first():
        yield
        return
    if (shard := arguments.shard) is not None:
        own = path.with_name(f"{path.name}.shard-{shard.number}-of-{shard.of}")
        with alone(own, "this shard is being judged: wait until that ends"), sharing(path):
            check_new(option, path, arguments.overwrite)
            yield
        return
    with alone(path, f"wait until it ends, or name another file, as {option} {_free(path)}"):
        check_new(option, path, arguments.overwrite)
        yield


def beside(out: Path) -> Path:
    """Returns the list of images that could not be judged, which lies beside the file of predictions."""
    return out.with_name(f"{out.name}.unreadable.csv")


def check_new(option: str, path: Path, overwrite: bool) -> None:
    """Raises ConfigError for a file that is there already, unless it is to be overwritten."""
    if path.exists() and not overwrite:
        raise ConfigError(
            f"{option}: {path} is there already, and is kept. Add --overwrite to make it anew, or name another file, as "
            f"{option} {_free(path)}"
        )


def _free(path: Path) -> Path:
    """Returns the name of a file with the first number that is free."""
    return next(each for number in count(2) if not (each := path.with_stem(f"{path.stem}-{number}")).exists())


def check_suffix(option: str, path: Path, known: tuple[str, ...]) -> None:
    """Raises ConfigError for a file whose name has none of the `known` endings."""
    if path.suffix.lower() not in known:
        raise ConfigError(f"{option}: {path} must end with {' or '.join(known)}")
