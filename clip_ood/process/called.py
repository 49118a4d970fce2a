"""Tells how a command of the project is called where this process runs: `clip-ood eval`, or `python eval.py` in a clone."""

from __future__ import annotations

import sys
from pathlib import Path

SCRIPTS = ("train", "eval", "detect", "attack", "study")  # commands that have a script in a clone


def called(name: str) -> str:
    """Returns what a user types to call a command.

    >>> called("eval"), called("catalog")
    ('python eval.py', 'clip-ood catalog')
    """
    this = Path(sys.argv[0])
    if name not in SCRIPTS or this.stem == "clip-ood" or this.parent.name == "clip_ood":  # as python -m clip_ood
        return f"clip-ood {name}"
    return f"python {name}.py"
