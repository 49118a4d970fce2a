"""Says in words what is wrong with the keys and values of a config, with a line for each."""

from __future__ import annotations

import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from clip_ood.config.values import below, kinds_of, locate, takes
from clip_ood.errors import nearest, shortened
from clip_ood.files.remote.address import Address
from clip_ood.terminal.shown import without_secrets

WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    Address: "an address",
}


def explain(error: ValidationError, section: type[BaseModel]) -> str:
    """Returns a line for each wrong key or value of a `section`, and one for a value that is of no kind that its key takes."""
    lines: dict[str, str] = {}
    refused: dict[str, list[dict[str, Any]]] = {}
    for problem in error.errors():
        where, rest, kind = _place(problem["loc"], section)
        if rest and _is_union(kind) and problem["type"] not in ("extra_forbidden", "missing"):
            refused.setdefault(where, []).append(problem)
            lines[where] = _of_union(where, refused[where], kind)
        else:
            lines[".".join(map(str, problem["loc"]))] = _explain(problem, kind, section)
    return "\n".join(lines.values())


def _place(location: tuple, section: type[BaseModel]) -> tuple[str, tuple, Any]:
    """Returns the key that a location lies in, the part of the location that is pydantic's own, and the key's type."""
    kind: Any = section
    for depth, part in enumerate(location):
        inner = takes(kind).items if isinstance(part, int) else below(kind, part)
        if inner is None or _is_union(kind):
            return ".".join(map(str, location[:depth])), location[depth:], kind
        kind = inner
    return ".".join(map(str, location)), (), kind


def _is_union(kind: Any) -> bool:
    return len([each for each in kinds_of(kind) if each is not type(None)]) > 1


def _of_union(where: str, problems: list[dict[str, Any]], kind: Any) -> str:
    """Returns one line for a value that no kind of a union takes: our own message or, without one, what the key takes."""
    ours = next((problem for problem in problems if problem["type"] == "value_error"), None)
    if ours is not None:
        return f"{where}: {_message(ours)}{_got(ours['input'])}"
    whole = min(problems, key=lambda problem: len(problem["loc"]))
    return f"{where}: takes {in_words(kind)}{_got(whole['input'])}"


def in_words(kind: Any) -> str:
    """Says what a value of this type may be.

    >>> in_words(list[str] | Path | typing.Literal["imagenet"] | None)
    "a list, a path, 'imagenet' or null"
    """
    said = list(dict.fromkeys(word for each in kinds_of(kind) for word in _words(each)))
    return " or ".join(filter(None, [", ".join(said[:-1]), said[-1]]))


def _words(kind: Any) -> Iterable[str]:
    if kind is type(None):
        return ["null"]
    if typing.get_origin(kind) is typing.Literal:
        return map(repr, typing.get_args(kind))
    if typing.get_origin(kind) is list:
        return ["a list"]
    return [WORDS.get(kind, "keys, as {KEY: VALUE}")]


def _one_below(place: tuple[int | str, ...], keys: Iterable[str], section: type[BaseModel]) -> str:
    """Returns the key of this name in one of the sections beside it, if there is one."""
    above, name = place[:-1], str(place[-1])
    found = next((key for key in keys if name in _keys_at((*above, key), section)), None)
    return "" if found is None else f" Did you mean {'.'.join(map(str, (*above, found, name)))}?"


def _explain(problem: dict[str, Any], kind: Any, section: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        valid = _keys_at(problem["loc"][:-1], section)
        known = f" Known here: {', '.join(valid)}.{_dots(problem['loc'], section)}"
        meant = _one_below(problem["loc"], valid, section) or nearest(str(problem["loc"][-1]), valid)
        return f"There is no config key {where}.{meant or known}"
    if problem["type"] == "missing":
        return f"The config key {where} is missing."
    if problem["input"] is None:
        return f"{where} has no value.{_default(problem['loc'], section)}"
    if problem["type"] in ("model_type", "dict_type"):
        expected = f"{where} takes keys, as --{where}='{{KEY: VALUE}}', or a YAML file; got {shortened(without_secrets(repr(problem['input'])), 200)}."
        known = ", ".join(_keys_at(problem["loc"], section)) if problem["type"] == "model_type" else ""
        return f"{expected} Known here: {known}." if known else expected
    if problem["type"] == "literal_error":
        return f"{where}: must be {in_words(kind)}{_got(problem['input'])}"
    given = _got(problem["input"])
    return f"{where}: {_message(problem)}{given}" if where else f"{_message(problem)}{given}"


def _message(problem: dict[str, Any]) -> str:
    """Returns pydantic's message, in the words of this project."""
    match problem["type"]:
        case "int_parsing" | "int_type" | "int_from_float":
            return "must be a valid integer"
        case "float_parsing" | "float_type":
            return "must be a valid number"
        case "bool_parsing" | "bool_type":
            return "must be a boolean, true or false"
        case "string_type":
            return "must be text"
        case "path_type":
            return "must be a path"
        case "too_long":
            return f"must hold at most {problem['ctx']['max_length']:,} items"
        case "int_parsing_size":
            return "is a larger number than any key takes"
        case "too_short":
            return f"must hold at least {problem['ctx']['min_length']} item"
    return problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")


def _got(given: Any) -> str:
    return "" if isinstance(given, dict | BaseModel) else f" (got {shortened(without_secrets(repr(given)), 200)})"


def _default(location: tuple, section: type[BaseModel]) -> str:
    """Returns the way out for a key without a value that has a default; it is empty for a key that has none."""
    *above, key = location
    _, rest, kind = _place(tuple(above), section)
    kinds = [] if rest else kinds_of(kind)
    fields = next((each.model_fields for each in kinds if isinstance(each, type) and issubclass(each, BaseModel)), {})
    if key not in fields or fields[key].default is PydanticUndefined:
        return ""
    default = fields[key].default
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    return f" Leave the key out for its default{f', {shown}' if shown and len(shown) < 40 else ''}."


def _dots(location: tuple, section: type[BaseModel]) -> str:
    """Returns the way out for a name with a dot in it, which a dotted key cannot hold; it is empty if there is no name."""
    mapping = ".".join(map(str, location[:-2]))
    named = mapping and takes(locate(mapping, section)[1]).values is not None
    return f" A name with a dot in it is given in braces: --{mapping}='{{NAME: …}}'." if named else ""


def _keys_at(location: tuple, section: type[BaseModel]) -> list[str]:
    """Returns the valid keys at `location` below a section."""
    from clip_ood.config.help import section_of

    for part in location:
        field = section.model_fields.get(str(part))
        if field is None:  # it is the name of a set in a mapping of sets
            continue
        section = section_of(field.annotation) or section
    return list(section.model_fields)
