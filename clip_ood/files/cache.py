"""Where what can be made again is kept for a user, whatever folder a command runs in."""

from __future__ import annotations

import os
from pathlib import Path

NOWHERE = Path(os.devnull) / "clip-ood"  # where nothing is found, and nothing can be written


def cache() -> Path:
    """`$XDG_CACHE_HOME/clip-ood`, or `~/.cache/clip-ood`; `NOWHERE` for a user without a home, or one who may not look into it."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clip-ood"
        folder.exists()
    except (OSError, RuntimeError):
        return NOWHERE
    return folder
