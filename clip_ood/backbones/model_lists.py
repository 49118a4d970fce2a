"""Which models open_clip and timm have, as they say themselves; kept for each version of theirs, since importing one takes seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from pydantic import Field

from clip_ood.files.cache import cache as users_cache
from clip_ood.files.records import Damaged, read_record
from clip_ood.files.writing import write_text

Models = dict[str, frozenset[str]]  # architecture -> the tags of its weights
PACKAGES = {"open_clip": "open_clip_torch", "timm": "timm"}


@cache
def models(library: str) -> Models:
    """The architectures of open_clip or timm, each with the tags of its weights.

    The library is imported where no earlier command of this user has asked its version, or could keep the answer.
    """
    path = list_file(library)
    try:
        found = read_record(path, Annotated[dict[str, list[str]], Field(min_length=1)])
    except (OSError, Damaged):
        found = _ASKED[library]()
        with suppress(OSError):  # then the next command asks again
            write_text(path, json.dumps(found))
    return {model: frozenset(tags) for model, tags in found.items()}


def list_file(library: str) -> Path:
    """Where the answer of the installed version is kept."""
    return users_cache() / "models" / f"{library}-{version(PACKAGES[library])}.json"


def _of_open_clip() -> dict[str, list[str]]:
    import open_clip

    return {model: open_clip.list_pretrained_tags_by_model(model) for model in open_clip.list_models()}


def _of_timm() -> dict[str, list[str]]:
    import timm

    found: dict[str, list[str]] = {model: [] for model in timm.list_models()}
    for name in timm.list_models(include_tags=True):
        model, _, tag = name.partition(".")
        found[model] += [tag] if tag else []
    return found


_ASKED: dict[str, Callable[[], dict[str, list[str]]]] = {"open_clip": _of_open_clip, "timm": _of_timm}
