"""Lists the models of a library of encoders, as it lists them itself; lists are cached by version, as imports take seconds."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from pydantic import Field

from clip_ood.backbones.library import library
from clip_ood.files.cache import cache as users_cache
from clip_ood.files.records import Damaged, read_record
from clip_ood.files.writing import write_text

Models = dict[str, frozenset[str]]  # architecture -> the tags of its weights


@cache
def models(name: str) -> Models:
    """Returns the architectures of a library, each with the tags of its weights.

    The library is imported if no earlier command of this user has asked its version, or could keep the answer.
    """
    path = list_file(name)
    try:
        found = read_record(path, Annotated[dict[str, list[str]], Field(min_length=1)])
    except (OSError, Damaged):
        found = library(name).list_models()
        with suppress(OSError):  # if it cannot be written, the next command asks again
            write_text(path, json.dumps(found))
    return {model: frozenset(tags) for model, tags in found.items()}


def list_file(name: str) -> Path:
    """Returns the file in which the answer of the installed version is kept."""
    return users_cache() / "models" / f"{name}-{version(library(name).package)}.json"


def clean(tag: str) -> str:
    """Returns a tag as lists write it."""
    return tag.lower().replace("-", "_")


def nearest_of(name: str, valid: Iterable[str]) -> str:
    """Returns the names that may have been meant, as the end of an error."""
    close = difflib.get_close_matches(name, list(valid), n=3, cutoff=0.4)
    return f" Did you mean {' or '.join(close)}?" if close else ""
