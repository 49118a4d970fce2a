"""Scores that separate in-distribution images from all others; a higher score means more in-distribution.

The package is pure torch, with one idea in each file. The names in `DETECTORS` are known without importing torch;
everything else loads on first use.
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
