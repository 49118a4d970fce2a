"""`--help`: every key with its type, default and meaning, from the schema."""

from __future__ import annotations

import types
import typing

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from configs.schema import Config


def section_of(annotation: typing.Any) -> type[BaseModel] | None:
    """The section inside an annotation such as `X | None`, `dict[str, X]` or `Annotated[X, …]`, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(section_of, typing.get_args(annotation))), None)


def explain(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Lines that explain the keys of a section and of those below it."""
    lines = []
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        by_name = typing.get_origin(field.annotation) is dict and inner is not None
        key = f"{prefix}{name}" + (".NAME" if by_name else "")
        default = "" if inner or field.default is PydanticUndefined else f" [{_short(field.default)}]"
        lines.append(f"  --{key}  ({_type(field.annotation)}){default}")
        lines.append("      " + " ".join((field.description or "").split()))
        if inner:
            lines += explain(inner, key + ".")
    return lines


def _short(default: typing.Any) -> str:
    if isinstance(default, list) and len(default) > 1:
        return f"{default[0]!r}, … {len(default)} in all"
    return "null" if default is None else str(default) or "''"


def _type(annotation: typing.Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type(part) for part in arguments)
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin in (list, dict):
        return f"{origin.__name__} of {_type(arguments[-1])}"
    return {type(None): "null", str: "text", BaseModel: "keys"}.get(
        annotation, getattr(annotation, "__name__", "value")
    )
