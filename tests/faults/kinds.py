"""The kinds of fault, each a module of this folder."""

from __future__ import annotations

import tempfile
import traceback
from importlib import import_module
from pathlib import Path

from faults.trial import Trial

KINDS: tuple[str, ...] = (
    "wrong_configs",
    "wrong_detector_folders",
    "wrong_run_files",
)


def trials(kind: str) -> list[Trial]:
    return import_module(f"faults.{kind}").trials()


def attempt(kind: str, number: int) -> str:
    """Why the trial failed, or nothing."""
    with tempfile.TemporaryDirectory(prefix="fault-", ignore_cleanup_errors=True) as folder:
        try:
            trials(kind)[number].run(Path(folder))
        except Exception:
            return traceback.format_exc(limit=-3)
    return ""
