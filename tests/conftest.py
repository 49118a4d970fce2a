"""What tests of several files need: images with a tiny encoder, and the wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import tiny_clip
from tiny_clip import PROJECT

from clip_ood.dotted_paths import FOLDERS


@pytest.fixture(scope="module")
def root(tmp_path_factory, request):
    """A folder of the test file's own, with images (data/) and a tiny random CLIP (clip/)."""
    return tiny_clip.make(tmp_path_factory.mktemp(request.module.__name__))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The project's wheel, built from copies of what it is made of."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("clip_ood", *FOLDERS):
        shutil.copytree(PROJECT / name, folder / "project" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, folder / "project")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "./project"]
    subprocess.run(command, cwd=folder, check=True)
    return next(folder.glob("*.whl"))
