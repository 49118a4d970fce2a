"""Makes `--help` from the schema: every key with its type, default and meaning."""

from __future__ import annotations

import ast
import inspect
import sys
import types
import typing
from functools import cache
from itertools import pairwise

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from clip_ood.config.schema import Config

VALUES = """\
Text, paths and names are taken as they are typed: --data.id='photos #2'. Where keys are meant, {KEY: VALUE} gives them, or
the name of a YAML file; where a list is meant, [A, B] is one, and all else is its only item. null alone means none where
there may be none, and no keys where keys are meant (./null is a folder). In YAML files, and within braces and brackets, values are text as well until their
key is a number or a truth value; there a # after a blank begins a comment, and quotes keep what they hold: 'photos #2'.
Only keys of trainer and parameters of detectors are whatever YAML makes of them. A name with a dot in it stands in braces:
--data.ood='{v1.5: FOLDER}'."""


def section_of(annotation: typing.Any) -> type[BaseModel] | None:
    """Returns the section inside an annotation such as `X | None`, `dict[str, X]` or `Annotated[X, …]`, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(section_of, typing.get_args(annotation))), None)


def explain(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Returns lines that explain the keys of a section and of those below it."""
    lines, said = [], meanings(section)
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        by_name = typing.get_origin(field.annotation) is dict and inner is not None
        key = f"{prefix}{name}" + (".NAME" if by_name else "")
        default = "" if inner or field.default is PydanticUndefined else f" [{_short(field.default)}]"
        lines.append(f"  --{key}  ({_type(field.annotation)}){default}")
        lines.append("      " + " ".join(said.get(name, "").split()))
        if inner:
            lines += explain(inner, key + ".")
    return lines


def meanings(section: type[BaseModel]) -> dict[str, str]:
    """Returns the text below each key of a section in its source. It is read for --help alone, as that takes longer than all else."""
    said: dict[str, str] = {}
    for cls in reversed(section.__mro__[: section.__mro__.index(BaseModel)]):
        for key, text in pairwise(_keys(cls.__module__, cls.__name__)):
            match key, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(found))):
                    said[name] = found
    return said


def _keys(module: str, name: str) -> list[ast.stmt]:
    """Returns what stands in a class at the top of a module, or nothing for one that stands elsewhere."""
    return next((each.body for each in _parsed(module) if isinstance(each, ast.ClassDef) and each.name == name), [])


@cache
def _parsed(module: str) -> list[ast.stmt]:
    return ast.parse(inspect.getsource(sys.modules[module])).body


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
