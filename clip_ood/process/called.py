"""How a command of the project is called, where this process runs: `clip-ood eval`, or `python eval.py` in a clone."""

from __future__ import annotations

import sys
from pathlib import Path

SCRIPTS = ("train", "eval", "detect", "attack", "study")  # commands that a clone has a script of


def called(name: str) -> str:
    """What calls a command.

    >>> called("eval"), called("catalog")
    ('python eval.py', 'clip-ood catalog')
    """
    this = Path(sys.argv[0])
    if name not in SCRIPTS or this.stem == "clip-ood" or this.parent.name == "clip_ood":  # as python -m clip_ood
        return f"clip-ood {name}"
    return f"python {name}.py"
