"""A sample of what `make faults` tries."""

from __future__ import annotations

import pytest
from faults.kinds import KINDS, trials

SAMPLES = [pytest.param(trial, id=f"{kind}: {trial.name}") for kind in KINDS for trial in trials(kind) if trial.sample]


@pytest.mark.parametrize("trial", SAMPLES)
def test_nothing_is_lost(trial, tmp_path):
    trial.run(tmp_path)
