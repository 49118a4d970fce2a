"""The kinds of fault, each of a module of this folder."""

from __future__ import annotations

from importlib import import_module

from faults.trial import Trial

KINDS: dict[str, str] = {  # kind, in words -> module of this folder
    "wrong configs": "fuzz_configs",
    "wrong detector folders": "fuzz_manifests",
    "wrong run files": "fuzz_run_files",
}


def trials(kind: str) -> list[Trial]:
    return import_module(f"faults.{KINDS[kind]}").trials()
