"""Errors that a user can mend are reported in a line; any other exception is a fault of ours and keeps its traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A user can mend this: the message says what was found, what was expected and the way out."""


class ConfigError(UserError):
    """A config cannot run: the message names the key, what was expected and the way out."""


def shortened(text: str, most: int = 60) -> str:
    """Returns the beginning of a text, with its length if it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def nearest(name: str, valid: Iterable[str], most: int = 3) -> str:
    """Returns " Did you mean …?" for the valid names closest to `name`, or the empty string when none is close."""
    close = difflib.get_close_matches(name, list(valid), n=most, cutoff=0.5)
    return f" Did you mean {' or '.join(close)}?" if close else ""
