"""Where what can be made again is kept for a user, whatever folder a command runs in."""

from __future__ import annotations

import os
from pathlib import Path


def cache() -> Path:
    """`$XDG_CACHE_HOME/clip-ood`, or `~/.cache/clip-ood`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clip-ood"
