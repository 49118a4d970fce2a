"""The kinds of fault, each a module of this folder."""

from __future__ import annotations

from importlib import import_module

from faults.trial import Trial

KINDS: tuple[str, ...] = ("signals", "the_dead")


def trials(kind: str) -> list[Trial]:
    return import_module(f"faults.{kind}").trials()
