"""Errors that a user can mend are reported in a line; any other exception is a fault of ours and keeps its traceback."""

from __future__ import annotations

import difflib
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from traceback import walk_tb


class UserError(ValueError):
    """A user can mend this: the message says what was found, what was expected and the way out."""


class ConfigError(UserError):
    """A config cannot run: the message names the key, what was expected and the way out."""


def shortened(text: str, most: int = 60) -> str:
    """Returns the beginning of a text, with its length if it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def brief(error: BaseException, most: int = 120) -> str:
    """Returns the beginning of an error's message, in one line."""
    return " ".join(str(error).split())[:most]


def nearest(name: str, valid: Iterable[str], most: int = 3) -> str:
    """Returns " Did you mean …?" for the valid names closest to `name`, or the empty string when none is close."""
    close = difflib.get_close_matches(name, list(valid), n=most, cutoff=0.5)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def raised_in(error: BaseException) -> str | None:
    """Returns the file and line of code of the user's own in which an error was raised, by itself or by a package that it called.

    None if it was raised by this project's code, or by a package that this called.
    """
    installed = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    for frame, line in reversed(list(walk_tb(error.__traceback__))):
        if frame.f_globals.get("__name__", "").partition(".")[0] == __name__.partition(".")[0]:
            return None
        file = Path(frame.f_code.co_filename)
        if file.is_file() and not any(file.resolve().is_relative_to(place) for place in installed):
            return f"{file}, line {line}"
    return None
