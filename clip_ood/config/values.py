"""Says what a key takes, by its type in the schema: keys, a list, text as it was typed, or whatever YAML makes of it."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from clip_ood.config.yaml_text import LONGEST, Plain, parse, parse_flow, reason, says_none
from clip_ood.errors import ConfigError, shortened


@dataclass(frozen=True)
class KeysOf:
    """Marks a mapping (`Annotated[dict[str, Any], KeysOf(Config)]`) whose keys are dotted keys of another section."""

    section: type[BaseModel]


@dataclass(frozen=True)
class Takes:
    """What a key takes: none; keys; text; a path; anything at all; a list of `items`, or a mapping to `values` (types)."""

    none: bool = False
    keys: bool = False
    text: bool = False
    path: bool = False
    anything: bool = False
    items: Any = None
    values: Any = None

    @property
    def keys_alone(self) -> bool:
        """Whether the key takes keys, and no text in their place."""
        return self.keys and not self.text


def takes(annotation: Any) -> Takes:
    """Returns what a key of this type takes; if the schema has no such key (None), it takes nothing."""
    kinds = list(kinds_of(annotation))
    sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    inside = {typing.get_origin(kind): typing.get_args(kind)[-1] for kind in kinds if typing.get_args(kind)}
    return Takes(
        none=types.NoneType in kinds,
        keys=bool(sections) or dict in inside,
        text=str in kinds or Path in kinds or typing.Literal in inside or any(each.bare for each in sections),
        path=Path in kinds and str not in kinds,
        anything=Any in kinds,
        items=inside.get(list),
        values=inside.get(dict),
    )


def locate(key: str, annotation: Any) -> tuple[list[str], Any]:
    """Returns the steps of a dotted key down from a section or mapping, and the type at its end (None: no such key)."""
    path: list[str] = []
    while True:
        if (section := _followed(annotation)) is not None:
            return [*path, key], locate(key, section)[1]
        first, dot, key = key.partition(".")
        path.append(first)
        annotation = below(annotation, first)
        if not dot:
            return path, annotation


def typed(text: str, annotation: Any) -> Any:
    """Returns the value typed for a key of this type: `null`, `{…}`, `[…]`, or otherwise the text itself.

    None stands for no keys, {}, if keys are meant. Raises: ConfigError for braces and brackets that cannot be read, if text is
    not meant.
    """
    takes_ = takes(annotation)
    if len(text) > LONGEST and not text.startswith(("[", "{")):
        raise ConfigError(f"the value has {len(text):,} characters, and at most {LONGEST:,} are read")
    if text == "null" and (takes_.none or takes_.keys_alone or takes_.path):
        return None
    if takes_.anything:
        try:
            return parse(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{shortened(text)!r} is no valid YAML value ({reason(error)})") from None
    if takes_.items is not None:
        if text.startswith("["):
            return _flow(text, or_text=takes_.text or not text.endswith("]"))
        return text if takes_.text else typed(text, takes_.items)
    if takes_.keys and text.startswith("{"):
        return _flow(text, or_text=takes_.text)
    return text


def settled(value: Any, annotation: Any) -> Any:
    """Returns a value with what only the schema can tell: what is none, and one item in place of a list.

    None stands for no keys, {}, if keys are meant.
    """
    takes_ = takes(annotation)
    if takes_.anything:
        return value
    if takes_.path and isinstance(value, Plain) and value.lower() == "null":
        return None  # a folder of this name is ./null; ~ is one's home
    if says_none(value) and (takes_.none or not takes_.text):
        return None if takes_.none or not takes_.keys else {}
    if takes_.items is not None and (isinstance(value, list) or not (takes_.text or value is None)):
        return [settled(each, takes_.items) for each in (value if isinstance(value, list) else [value])]
    if takes_.values is not None and isinstance(value, dict):
        return {key: settled(each, takes_.values) for key, each in value.items()}
    return str(value) if isinstance(value, Plain) else value


def _flow(text: str, or_text: bool) -> Any:
    try:
        return parse_flow(text)
    except yaml.YAMLError as error:
        if or_text:
            return text
        raise ConfigError(
            f"{shortened(text)!r} is no valid YAML ({reason(error)}); put text that YAML cannot read in quotes"
        ) from None


def kinds_of(annotation: Any) -> Iterator[Any]:
    """Yields the types that an annotation joins: `Annotated[X, …] | list[Y] | None` are X, list[Y] and NoneType."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        yield from kinds_of(arguments[0])
    elif origin in (typing.Union, types.UnionType):
        for each in arguments:
            yield from kinds_of(each)
    elif annotation is not None:
        yield annotation


def below(annotation: Any, key: str) -> Any:
    """Returns the type of what a key names in a section or mapping of this type, or None if there is no such key."""
    for kind in kinds_of(annotation):
        if kind is Any:
            return Any
        if typing.get_origin(kind) is dict:
            return typing.get_args(kind)[1]
        if isinstance(kind, type) and issubclass(kind, BaseModel) and key in kind.model_fields:
            field = kind.model_fields[key]
            return typing.Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    return None


def _followed(annotation: Any) -> type[BaseModel] | None:
    marks = typing.get_args(annotation)[1:] if typing.get_origin(annotation) is typing.Annotated else ()
    return next((mark.section for mark in marks if isinstance(mark, KeysOf)), None)
