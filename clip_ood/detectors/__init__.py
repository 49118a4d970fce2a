"""Scores that tell in-distribution images from the rest; higher = more in-distribution.

Pure torch, one idea a file. The names in `DETECTORS` are known without importing torch; everything else loads on
first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from clip_ood.detectors.names import DETECTORS, Spec, read_specs

_LAZY = {"Detector": "detector", "build_detectors": "build", "Omitted": "build", "nearest": "neighbours"}

__all__ = ["DETECTORS", "Detector", "Omitted", "Spec", "build_detectors", "nearest", "read_specs"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
