"""Reads lists of classes: those that are written in a config, those of a file, and the published ones in `class_lists/`.

A file has a class on each line; lines that begin with # are comments. Nothing heavy is imported.
"""

from __future__ import annotations

from pathlib import Path

from clip_ood.errors import ConfigError, nearest
from clip_ood.files.regular_file import no_file
from clip_ood.files.remote.fetched import local
from clip_ood.files.text_files import read_lines
from clip_ood.naming import twins

SHIPPED = Path(__file__).with_name("class_lists")


def shipped() -> list[str]:
    """Returns the names of the published lists."""
    return sorted(path.stem for path in SHIPPED.glob("*.txt"))


def classes_of(value: list[str] | Path, root: Path, key: str) -> tuple[str, ...]:
    """Returns the classes of a list, with underscores as blanks: `value` is the list, a published one's name, or a file under `root`.

    Raises: ConfigError for a file that is not there, an empty list, and a class that stands there twice; it names `key`.
    """
    if isinstance(value, list):
        names, told = value, "the list"
    else:
        known = str(value) in shipped()
        path = SHIPPED / f"{value}.txt" if known else local(root / value)
        if not path.is_file():
            raise ConfigError(
                f"{key}: there is no file {path}{no_file(path)}, and no published list of that name.{nearest(str(value), shipped())} "
                f"Published lists: {', '.join(shipped())}"
            )
        names = [name for line in read_lines(path) if (name := line.strip()) and not name.startswith("#")]
        told = str(path)
    names = tuple(" ".join(name.replace("_", " ").split()) for name in names)
    if not names:
        raise ConfigError(f"{key}: {told} names no class")
    if len(set(names)) < len(names) or twins(names):
        twice = next((name for name in names if names.count(name) > 1), None) or twins(names)[1]
        raise ConfigError(f"{key}: {told} names the class {twice!r} twice")
    return names
