"""Checks, before any work, the loggers and callbacks that a config names by class path, and makes them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from clip_ood.dotted_paths import module_of
from clip_ood.errors import UserError, nearest


def check_classes(trainer: Mapping[str, Any]) -> None:
    """Raises UserError for a class under trainer.logger or trainer.callbacks that does not exist, is of another kind, or does not
    take its init_args. Nothing is made yet, because some loggers write files at once.
    """
    for kind, option, entry in _entries(trainer):
        _class_of(entry, kind, option)


def make_callbacks(trainer: Mapping[str, Any]) -> list[Callback]:
    """Makes the callbacks under trainer.callbacks, in their order. Raises: UserError, also for what their own code raises."""
    return [make(entry, Callback, option) for kind, option, entry in _entries(trainer) if kind is Callback]


def make(entry: Mapping[str, Any], kind: type, option: str) -> Any:
    """Makes the object that `{class_path: …, init_args: {…}}` describes, of a kind; `option` is its key in the config."""
    cls = _class_of(entry, kind, option)
    try:
        return cls(**(entry.get("init_args") or {}))
    except Exception as error:  # a user's code may raise anything
        told = f"{type(error).__name__}{f': {error}' if str(error) else ''}"
        raise UserError(f"{option}: {entry['class_path']} cannot be made with these init_args: {told}") from error


def _entries(trainer: Mapping[str, Any]) -> Iterator[tuple[type, str, Mapping[str, Any]]]:
    """Yields the kind, key and content of each class that is named."""
    for kind, key in ((Logger, "logger"), (Callback, "callbacks")):
        value = trainer.get(key) or []
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, Mapping):
                yield kind, f"trainer.{key}", entry


def _class_of(entry: Mapping[str, Any], kind: type, option: str) -> type:
    path = entry["class_path"]
    module, name = module_of(path, f"{option}: {path}")
    if (cls := getattr(module, name, None)) is None:
        raise UserError(f"{option}: {path}: {module.__name__} has no class {name!r}.{nearest(name, vars(module))}")
    if not (isinstance(cls, type) and issubclass(cls, kind)):
        raise UserError(f"{option}: {path}: expected a subclass of lightning.pytorch's {kind.__name__}, got {cls!r}")
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise UserError(f"{option}: {path} has no {missing[0]}, which each {kind.__name__} needs")
    signature, given = inspect.signature(cls), entry.get("init_args") or {}
    try:
        signature.bind(**given)
    except TypeError as error:
        unknown = next((key for key in given if key not in signature.parameters), None)
        near = "" if unknown is None else nearest(unknown, signature.parameters)
        takes = ", ".join(signature.parameters) or "none"
        raise UserError(f"{option}: {path}: its init_args do not fit: {error}; it takes {takes}.{near}") from None
    return cls
