"""docs/extending.md: a method with keys, a data source and a library of encoders are added to a copy of the project as the page says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
import tiny_clip
import torch
import torchvision
import yaml
from tiny_clip import PROJECT

pytestmark = pytest.mark.slow

SPLITS = ("--data.splits.val=0.45", "--data.splits.test=0.2")  # 20 or so of 46 images to calibrate on
PACKAGES = ("callbacks", "clip_ood", "configs", "datamodules", "experiments", "lightning_modules")


def section(title: str) -> str:
    page = (PROJECT / "docs" / "extending.md").read_text()
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def followed(text: str, project: Path) -> set[str]:
    """Writes the files of a section of the page, and adds its lines; which files that touched."""
    written = re.findall(r"^`([\w/.]+)`, a new file\b[^`]*(?:`\w+`[^`]*)*```python\n(.*?)^```$", text, re.M | re.S)
    for place, content in written:
        assert not (project / place).exists()
        (project / place).write_text(content)
    changed = re.findall(r"^```diff\n\+\+\+ (\S+)\n (.*?)\n((?:\+.*\n)+)```$", text, re.M)
    assert len(written) == text.count("```python") and len(changed) == text.count("```diff")
    for place, there, added in changed:
        lines = (project / place).read_text().splitlines()
        assert lines.count(there) == 1, f"{place} has not this line once: {there}"
        after = lines.index(there) + 1
        lines[after:after] = [line[1:] for line in added.splitlines()]
        (project / place).write_text("\n".join(lines) + "\n")
    return {place for place, *_ in (*written, *changed)}


@pytest.fixture
def project(tmp_path):
    """A copy of the project's packages and scripts."""
    for name in PACKAGES:
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for script in (*PROJECT.glob("*.py"), PROJECT / "pyproject.toml"):
        shutil.copy(script, tmp_path)
    return tmp_path


def called(project: Path, *command: str) -> str:
    own = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(project), "COLUMNS": "200"}
    ended = forked.run([sys.executable, *command], cwd=project, env=own)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def linted(project: Path, files: set[str]) -> None:
    for check in (["check"], ["format", "--check"]):
        command = [str(Path(sys.executable).with_name("ruff")), *check, "--config", str(PROJECT / "pyproject.toml")]
        ended = subprocess.run([*command, *sorted(files)], cwd=project, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout


def table(run: Path) -> dict[str, float]:
    """The mean AUROC of each detector."""
    return {row["detector"]: row["auroc"] for row in tiny_clip.results(run)["rows"] if row["ood"] == "mean"}


def test_a_method_with_keys_of_its_own_is_three_files(root, project):
    text = section("A method with keys of its own")
    touched = followed(text, project)
    assert len(touched) == 3
    linted(project, touched)
    explained = called(project, "train.py", "--help")
    assert (
        "method.prototypes.temperature" in explained
        and "Temperature by which halved squared distances are divided." in explained
    )
    method = yaml.safe_load(re.search(r"--method='(.*)'", text)[1])
    config = tiny_clip.config(root, "prototypes", method)
    called(project, "train.py", "--config", config, "--plan")
    assert "msp" in called(project, "train.py", "--config", config, *SPLITS)
    run = root / "runs" / "prototypes"
    assert {"knn", "msp", "vim", "energy"} <= table(run).keys() and len(tiny_clip.results(run)["rows"]) > 12
    points = tiny_clip.checkpoint(run)["state_dict"]["points"]
    assert points.shape == (3, 32) and points.std(dim=0).min() > 0
    two = ("--trainer.devices=2", "--trainer.strategy=ddp", "--name=two")
    called(project, "train.py", "--config", config, *SPLITS, *two)
    assert table(root / "runs" / "two") == pytest.approx(table(run), abs=1e-6)
    called(project, "eval.py", "--run", str(run), "--name=again")
    assert table(root / "runs" / "again") == table(run)
    judged = called(project, "detect.py", "--run", str(run), "--detector", "msp", f"{root}/data/near/1.png")
    assert judged.startswith("path,is_ood") and judged.count("\n") == 2


def test_a_shipped_data_source_is_two_files(root, project):
    text = section("A data source")
    touched = followed(text[text.index("A reader that becomes part") :], project) | {"clip_ood/data/readers/npy.py"}
    assert len(touched) == 2
    (project / "clip_ood/data/readers/npy.py").write_text(re.search(r"^```python\n(.*?)^```$", text, re.M | re.S)[1])
    np.save(root / "data" / "photos.npy", np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), np.uint8))
    np.save(root / "data" / "labels.npy", np.arange(30) % 3)
    photos = {
        "reader": "npy",
        "path": "photos.npy",
        "options": {"labels": "labels.npy", "classes": ["cat", "dog", "fox"]},
    }
    data = {"root": f"{root}/data", "id": {"images": photos}, "ood": {"near": "near"}}
    config = tiny_clip.config(root, "shipped", {"zero_shot": {}}, data=data)
    called(project, "eval.py", "--config", config)
    assert {"knn", "mcm"} <= table(root / "runs" / "shipped").keys()


@pytest.mark.parametrize("weights", ["random", "file"])
def test_a_library_of_encoders_is_two_files(root, project, weights):
    text = section("A library of encoders")
    touched = followed(text, project)
    assert len(touched) == 2
    linted(project, touched)
    backbone = yaml.safe_load(re.search(r"^```yaml\n(.*?)^```$", text, re.M | re.S)[1])["backbone"]
    if weights == "file":
        torch.manual_seed(3)
        torch.save(torchvision.models.resnet18().state_dict(), root / "resnet18.pth")
        backbone["pretrained"] = str(root / "resnet18.pth")
    config = tiny_clip.config(root, weights, {"linear_probe": {"epochs": 2}}, backbone=backbone)
    called(project, "train.py", "--config", config, "--plan")
    assert "msp" in called(project, "train.py", "--config", config, *SPLITS, "--evaluation.with_encoder=true")
    run = root / "runs" / weights
    assert {"knn", "msp", "vim"} <= table(run).keys()
    judged = called(project, "detect.py", "--run", str(run), f"{root}/data/near/1.png")
    assert judged.startswith("path,is_ood") and judged.count("\n") == 2


def test_what_the_library_of_the_page_has_not_is_one_line(root, project):
    followed(section("A library of encoders"), project)
    config = tiny_clip.config(
        root, "wrong", {"zero_shot": {}}, backbone={"library": "torchvision", "model": "resnet19"}
    )
    with pytest.raises(AssertionError, match=r"torchvision has no model 'resnet19'\. Did you mean resnet18"):
        called(project, "eval.py", "--config", config)
