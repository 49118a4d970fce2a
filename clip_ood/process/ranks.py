"""Tells, by the variables that launchers set, whether this process is the first of several, which alone writes and speaks."""

from __future__ import annotations

import os

from clip_ood.terminal.shown import say

RANKS = (
    "RANK",
    "LOCAL_RANK",
    "NODE_RANK",
    "GROUP_RANK",
    "SLURM_PROCID",
    "JSM_NAMESPACE_RANK",
    "OMPI_COMM_WORLD_RANK",
    "PMI_RANK",
)


def is_first() -> bool:
    """Says whether no variable gives this process another place than the first.

    The scripts remove variables that were not meant for them (see `clip_ood.process.launchers`).
    """
    return all(os.environ.get(rank, "0") in ("0", "") for rank in RANKS)


def say_once(text: str) -> None:
    """Shows a text, in the first process alone."""
    if is_first():
        say(text)
