"""Returns the versions of what features and scores depend on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("clip-ood", "torch", "torchvision", "open_clip_torch", "timm")


def versions(*more: str) -> dict[str, str]:
    """Returns the version of Python, of each package in `PACKAGES` and of `more`, by name."""
    return {"Python": platform.python_version()} | {name: _version(name) for name in (*PACKAGES, *more)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # this project is run from its folder, without being installed
        return "not installed"
