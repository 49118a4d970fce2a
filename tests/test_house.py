"""The house: what is installed, under one name, and who may know whom."""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import judged_run
import pytest
import tiny_clip
import tomllib
from tiny_clip import PROJECT

from clip_ood.dotted_paths import FOLDERS

pytestmark = pytest.mark.slow

MAPPED = [folder for folder in FOLDERS if folder != "configs"]  # Python that lies beside clip_ood/ in a clone


@pytest.fixture(scope="module")
def installed(tmp_path_factory, wheel):
    """What the wheel puts into site-packages."""
    site = tmp_path_factory.mktemp("installed") / "site"
    zipfile.ZipFile(wheel).extractall(site)
    return site


def run(command: list[str], cwd: Path, *path: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, path)), "COLUMNS": "200"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_a_wheel_puts_one_name_into_site_packages(installed):
    names = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"clip_ood"}
    shipped = {path.relative_to(PROJECT) for path in (PROJECT / "configs").rglob("*.yaml")}
    assert shipped == {
        path.relative_to(installed / "clip_ood") for path in (installed / "clip_ood/configs").rglob("*.yaml")
    }
    modules = {path.relative_to(PROJECT) for folder in MAPPED for path in (PROJECT / folder).rglob("*.py")}
    modules |= {path.relative_to(PROJECT / "clip_ood") for path in (PROJECT / "clip_ood").rglob("*.py")}
    assert {path.relative_to(installed / "clip_ood") for path in (installed / "clip_ood").rglob("*.py")} == modules
    assert (installed / "clip_ood" / "py.typed").is_file()


OWN = """
from clip_ood.detectors import Detector


class Norm(Detector):
    requires = ("features",)

    def _score(self, rows):
        return -rows.features.norm(dim=1)
"""


@pytest.mark.parametrize("command", [["-m", "clip_ood", "eval"], [str(PROJECT / "eval.py")]])
def test_own_folders_of_our_names_break_nothing(tmp_path, command):
    """Neither where the command is called, nor a script of the clone."""
    for name in ("callbacks", "configs", "datamodules"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "callbacks" / "mine.py").write_text(OWN)
    config = tiny_clip.config(
        tiny_clip.make(tmp_path / "own"), "mine", {"zero_shot": {}}, detectors=["callbacks.mine.Norm"]
    )
    ended = run([sys.executable, *command, "--config", config], tmp_path)
    assert ended.returncode == 0 and "Norm" in ended.stdout, ended.stderr


ONE_FILE_ONE_MODULE = """
import sys
from collections import Counter
from pathlib import Path

from clip_ood.detectors import Detector


def twice():
    named = [(name, str(Path(module.__file__).resolve())) for name, module in list(sys.modules.items()) if getattr(module, "__file__", None)]
    ours = [(name, file) for name, file in named if file.startswith("PROJECT/") and "/.venv/" not in file and not name.startswith("__m")]
    files = Counter(file for _, file in ours)
    assert len(files) > 20 and max(files.values()) == 1, [each for each in ours if files[each[1]] > 1]


class Norm(Detector):
    requires = ("features",)

    def __init__(self, reference):
        super().__init__(reference)
        twice()
        import torch.distributed as dist

        place = dist.get_rank() if dist.is_initialized() else "alone"
        Path(f"seen-{place}").touch()

    def _score(self, rows):
        return -rows.features.norm(dim=1)
""".replace("PROJECT", str(PROJECT))


@pytest.mark.parametrize(("devices", "seen"), [(1, {"seen-alone"}), (2, {"seen-0", "seen-1"})])
def test_no_file_is_two_modules(tmp_path, devices, seen):
    (tmp_path / "mine.py").write_text(ONE_FILE_ONE_MODULE)
    config = tiny_clip.config(tiny_clip.make(tmp_path / "own"), "mine", {"zero_shot": {}}, detectors=["mine.Norm"])
    options = [f"--trainer.devices={devices}", "--trainer.strategy=ddp", "--data.num_workers=1"] if devices > 1 else []
    ended = run([sys.executable, str(PROJECT / "eval.py"), "--config", config, *options], tmp_path, PROJECT)
    assert ended.returncode == 0 and seen <= {path.name for path in tmp_path.glob("seen-*")}, ended.stderr


BLOCKED = """
import sys


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lightning", "tensorboard", "matplotlib", "torchmetrics"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)


sys.meta_path.insert(0, Blocked())
import clip_ood.detectors
from clip_ood import load
from clip_ood.metrics import ood_metrics, roc_curve

(prediction,) = load(sys.argv[1])([sys.argv[2]])
print(prediction.is_ood, prediction.score)
"""


def test_an_image_is_judged_without_lightning_tensorboard_matplotlib_and_torchmetrics(tmp_path):
    root = tiny_clip.make(tmp_path)
    run_folder = judged_run.make(root, "judged")
    image = next((root / "data" / "near").rglob("*.png"))
    judged = run([sys.executable, "-c", BLOCKED, str(run_folder), str(image)], tmp_path, PROJECT)
    assert judged.returncode == 0 and judged.stdout.split()[0] in ("True", "False"), judged.stderr


@pytest.mark.parametrize("script", ["train.py", "eval.py", "detect.py", "attack.py", "study.py"])
def test_a_clone_that_is_not_installed_says_how(tmp_path, script):
    told = run([sys.executable, "-S", str(PROJECT / script), "--help"], tmp_path)
    assert told.returncode == 1 and len(told.stderr.splitlines()) == 1
    assert told.stderr.endswith(f"is not installed, which clip-ood needs: pip install -e {PROJECT}\n"), told.stderr


@pytest.mark.parametrize(
    "path",
    [
        str(path.relative_to(PROJECT))
        for folder in MAPPED
        for path in (PROJECT / folder).rglob("*.py")
        if ">>>" in path.read_text()
    ],
)
def test_examples_of_the_folders_beside_the_library(path):
    assert doctest.testmod(import_module("clip_ood." + path.removesuffix(".py").replace("/", "."))).failed == 0


def lint(installed: Path) -> subprocess.CompletedProcess:
    contracts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert len(contracts["contracts"]) >= 3
    command = [
        str(Path(sys.executable).with_name("lint-imports")),
        "--config",
        str(PROJECT / "pyproject.toml"),
        "--no-cache",
    ]
    return run(command, installed, installed)


def test_nobody_knows_whom_he_must_not_know(installed):
    pytest.importorskip("importlinter", reason="needs import-linter: pip install -e '.[test]'")
    checked = lint(installed)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("detectors/knn.py", "import clip_ood.features.store"),
        ("detect/predictor.py", "import clip_ood.experiments.run"),
        ("datamodules/image_data.py", "import clip_ood.lightning_modules.plp"),
        ("files/records.py", "import lightning"),
        ("data/splits.py", "from clip_ood.config.schema import Config"),
    ],
)
def test_a_broken_rule_is_seen(installed, tmp_path, module, line):
    pytest.importorskip("importlinter", reason="needs import-linter: pip install -e '.[test]'")
    shutil.copytree(installed, tmp_path / "site")
    with (tmp_path / "site" / "clip_ood" / module).open("a") as file:
        file.write(f"\n{line}\n")
    assert lint(tmp_path / "site").returncode == 1


@pytest.mark.parametrize("folder", ["callbacks", "datamodules", "lightning_modules"])
def test_nobody_asks_the_trainer_for_what_he_could_have_been_given(folder):
    for path in (PROJECT / folder).glob("*.py"):
        assert not re.search(r"trainer\.(datamodule|lightning_module)\b", path.read_text()), path
