"""The kinds of fault, each a module of this folder."""

from __future__ import annotations

from importlib import import_module

from faults.trial import Trial

KINDS: tuple[str, ...] = (
    "wrong_configs",
    "wrong_detector_folders",
    "wrong_run_files",
)


def trials(kind: str) -> list[Trial]:
    return import_module(f"faults.{kind}").trials()
