"""Reads JSON files that the project wrote; what each holds is declared, and the error names what does not fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from clip_ood.errors import UserError
from clip_ood.files.text_files import read_text
from clip_ood.naming import text_fault

LARGEST = 1 << 26  # bytes of a file
SHOWN = 60  # characters of a value in a message


class Record(BaseModel):
    """The keys of such a file. Values must have the declared types; a key that is not declared may be another version's."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, defer_build=True)


class Unfit(UserError):
    """The content of a file is not as declared; the message names the key, what was found and what was expected."""


def _writable(text: str) -> str:
    if reason := text_fault(text):
        raise UserError(reason)
    return text


Text = Annotated[str, AfterValidator(_writable)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class Damaged(Unfit):
    """A file is not as it was written; the message also names the file."""


@contextmanager
def undamaged(path: Path) -> Iterator[None]:
    """Wraps the reading of a file. Raises: Damaged for what is unfit there."""
    try:
        yield
    except Unfit as error:
        raise Damaged(f"{path} is damaged ({error})") from error


def read_record(path: Path, declared: Any) -> Any:
    """Returns the content of a JSON file, if it is as `declared`. Raises: Damaged for anything else, OSError."""
    with undamaged(path):
        return fitting(read_json(path), declared)


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file. Raises: Unfit for a file that is no JSON or has a key twice, OSError."""
    try:
        return json.loads(read_text(path, LARGEST), object_pairs_hook=_once)
    except RecursionError:
        raise Unfit("its lists and mappings lie too deep in each other") from None
    except ValueError as error:
        raise Unfit(str(error)) from None


def read_named(path: Path) -> Any:
    """Returns the content of a JSON file. Raises: UserError, which names the file, for one that is damaged; OSError."""
    try:
        return read_json(path)
    except Unfit as error:
        raise UserError(f"{path} is damaged: it is no JSON ({error})") from error


def fitting(content: Any, declared: Any) -> Any:
    """Returns `content` as it is, if it is as `declared`, which is a `Record` or a type that holds some.

    Raises: Unfit, which names the first key that is not as declared.
    """
    try:
        _adapter(declared).validate_python(content, strict=True)
    except ValidationError as error:
        raise Unfit(_told(error.errors()[0])) from None
    return content


@cache
def _adapter(declared: Any) -> TypeAdapter:
    return TypeAdapter(declared)


def _told(problem: dict[str, Any]) -> str:
    key = ".".join(map(str, problem["loc"])) or "it"
    match problem["type"]:
        case "missing":
            return f"the key {key} is missing"
        case "extra_forbidden":
            return f"the key {key!r} is none that clip-ood writes there"
        case "value_error":
            return f"{key} {problem['ctx']['error']}"
    return f"{key} is {_shown(problem['input'])}, and must be {_words(problem)}"


def _words(problem: dict[str, Any]) -> str:
    named = {"int_type": "a whole number", "string_type": "a text", "dict_type": "a mapping", "model_type": "a mapping"}
    said = problem["msg"].removeprefix("Input should be ").removeprefix("Input should ")
    return named.get(problem["type"], said.replace("a valid ", "a "))


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise UserError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return content
