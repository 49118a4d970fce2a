"""The wheel, installed by pip into an environment of its own: the command works where nothing of the clone can be imported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import tiny_clip
from test_house import OWN
from tiny_clip import PROJECT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory, wheel):
    """A fresh environment with the wheel. What the project depends on is found in that of the tests, whose own .pth files, as that of
    an editable clip_ood, are not read there."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(command, check=True, env=alone())
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "of_the_tests.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return folder


def alone():
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


def called(command, cwd):
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=alone(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_name_is_installed_and_none_of_the_clone_can_be_imported(environment, tmp_path):
    (site,) = environment.glob("lib/python*/site-packages")
    assert {path.name for path in site.iterdir()} == {"clip_ood", "clip_ood-0.1.0.dist-info", "of_the_tests.pth"}
    script = "import sys, clip_ood.datamodules as one; print(one.__file__, *sys.path, sep='\\n')"
    imported, *path = called([environment / "bin" / "python", "-c", script], tmp_path).splitlines()
    assert Path(imported).is_relative_to(site)
    assert not [each for each in path if each and (Path(each) / "clip_ood").is_dir() and Path(each) != site]


def test_the_command_knows_shipped_configs_and_the_catalogue_in_any_folder(environment, tmp_path):
    command = environment / "bin" / "clip-ood"
    assert "bigG" in called([command, "train", "--config", "plp_vitg.yaml", "--print_config"], tmp_path)
    assert "NINCO" in called([environment / "bin" / "python", "-m", "clip_ood", "catalog"], tmp_path)
    wrong = subprocess.run([command, "trian"], cwd=tmp_path, env=alone(), capture_output=True, text=True)
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: there is no command 'trian'")


def test_a_run_its_judging_and_a_detector_of_ones_own_in_any_folder(environment, tmp_path):
    command, root = environment / "bin" / "clip-ood", tiny_clip.make(tmp_path)
    assert "clip-ood COMMAND OPTIONS" in called([command, "--help"], root)
    shutil.copytree(root / "data" / "id", root / "photos")
    options = ["--data.id=photos/", f"--backbone={{model: local-dir:{root}/clip}}", "--evaluation.accept=0.5"]
    said = called([command, "train", "--config", "own_images.yaml", *options, "--evaluation.resamples=0"], root)
    assert "clip-ood detect --run runs/own_images photos/" in said
    called([command, "detect", "--run", "runs/own_images", "photos/", "--out", "predictions.csv"], root)
    assert len((root / "predictions.csv").read_text().splitlines()) == 1 + 46
    (root / "my_scores.py").write_text(OWN)
    own = Path(tiny_clip.config(root, "mine", {"zero_shot": {}}, detectors=["knn", "my_scores.Norm"]))

    said = called([command, "eval", "--config", own.name], root)
    assert "Norm" in said and "clip-ood eval --compare" in said
    assert str(PROJECT) not in (root / "runs" / "own_images" / "results.json").read_text()
