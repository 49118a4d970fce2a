"""The versions of what a run was made with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("clip-ood", "torch", "lightning", "open_clip_torch", "timm")


def versions() -> dict[str, str]:
    """The version of Python and of each package in `PACKAGES`."""
    return {"Python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # this project, run from its folder
        return "not installed"
