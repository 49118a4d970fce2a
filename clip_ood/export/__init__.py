"""Exports a fitted model as one file, from pixels to scores, that runs without this package."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_LAZY = {"export": "write", "Exported": "write", "format_of": "formats"}  # format_of answers without torch

__all__ = ["Exported", "export", "format_of"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
