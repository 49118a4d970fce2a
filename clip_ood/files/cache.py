"""The user's cache, which keeps what can be made again, whatever folder a command runs in."""

from __future__ import annotations

import os
from pathlib import Path

NOWHERE = Path(os.devnull) / "clip-ood"  # nothing is found there, and nothing can be written


def cache() -> Path:
    """Returns `$XDG_CACHE_HOME/clip-ood`, or `~/.cache/clip-ood`; for a user without a readable home, it returns `NOWHERE`."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clip-ood"
        folder.exists()
    except (OSError, RuntimeError):
        return NOWHERE
    return folder
