"""A sample of the faults that `make faults` tries, from every kind."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import Any

import pytest
from faults.kinds import KINDS, trials

pytestmark = pytest.mark.slow

SAMPLES = [pytest.param(trial, id=f"{kind}: {trial.name}") for kind in KINDS for trial in trials(kind) if trial.sample]


def functions_and_constants() -> dict[tuple[str, str], Any]:
    """Of this project's modules, and of those of Python that a trial may have reason to change."""
    ours = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == "clip_ood"]
    return {
        (module.__name__, name): value
        for module in (os, shutil, time, *ours)
        for name, value in vars(module).items()
        if callable(value) or name.isupper()
    }


@pytest.mark.parametrize("trial", SAMPLES)
def test_nothing_is_lost(trial, tmp_path):
    before = functions_and_constants()
    trial.run(tmp_path)
    after = functions_and_constants()
    left = [".".join(key) for key, value in before.items() if after.get(key) is not value]
    assert not left, f"the trial leaves this process with another {left}"
