"""Whole runs with each logger: what it is given, where it lies, runs that go on, seeds, two processes, what is wrong with one."""

from __future__ import annotations

import csv
import json
import os
import re
import sqlite3
import subprocess
import sys

import forked
import pytest
import tiny_clip
import yaml
from lightning.pytorch import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_clip import PROJECT

import eval as evaluation
import study
import train
from clip_ood.config.loading import load_config
from clip_ood.errors import ConfigError, UserError

pytestmark = pytest.mark.slow

PROBE = {"linear_probe": {"epochs": 3, "batch_size": 16, "lr": 0.01}}
FIGURES = {"ood/near/histograms", "ood/near/curves"}
CURVES = {"train/loss", "val/loss", "val/accuracy", "ood/near/knn/auroc", "ood/mean/msp/auroc"}
ALL = [
    "tensorboard",
    "csv",
    pytest.param("wandb", marks=pytest.mark.extras),
    pytest.param("mlflow", marks=pytest.mark.extras),
]
REST = ALL[1:]


def config(root, name, logger, method=PROBE, **trainer):
    data = {"root": f"{root}/data", "id": "id", "ood": {"near": "near"}, "splits": {"val": 0.2, "test": 0.3}}
    keys = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "logger": logger} | trainer
    shown = {"figures": True, "report": False, "save_detector": False}
    return tiny_clip.config(root, name, method, data=data, trainer=keys, evaluation=shown, detectors=["knn", "msp"])


def trained(root, name, logger, *options, **keys):
    train.main(["--config", config(root, name, logger, **keys), *options])
    return root / "runs" / name


# What each holds: the number of points of a curve by its name, the names of figures, and of the texts


def of_tensorboard(run):
    events = EventAccumulator(str(run)).Reload()
    tags = events.Tags()
    texts = [tag.removesuffix("/text_summary") for tag in tags["tensors"]]
    return {tag: len(events.Scalars(tag)) for tag in tags["scalars"]}, set(tags["images"]), texts


def of_csv(run):
    with (run / "metrics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    points = {name: sum(bool(line[name]) for line in lines) for name in lines[0]}
    return points, FIGURES, ["config"] if "config:" in (run / "hparams.yaml").read_text() else []


def of_wandb(run):
    (known,) = {path.name.split("-")[3] for path in run.glob("wandb/offline-run-*")}
    assert known == (run / "wandb.id").read_text()
    kept = b"".join(path.read_bytes() for path in sorted(run.glob("wandb/offline-run-*/*.wandb")))
    curves = set(map(bytes.decode, re.findall(rb"(?:train|val|ood)/[\w/]+", kept)))
    media = [path for path in run.glob("wandb/*/files/media/images/**/*.png")]
    figures = {"/".join(path.relative_to(run).parts[5:]).partition("_")[0] for path in media}
    points = {name: len(re.findall(rb"\b%s\b" % name.encode(), kept)) for name in curves}
    return points, figures, [name for name in ("config", "results") if name.encode() in kept]


def of_mlflow(run):
    with sqlite3.connect(run / "mlflow.db") as store:
        points = dict(store.execute("select key, count(*) from metrics group by key"))
        assert store.execute("select count(*), max(status) from runs").fetchone() == (1, "FINISHED")
        assert ("method", "linear_probe") in set(store.execute("select key, value from params"))
    artifacts = run / "mlartifacts" / (run / "mlflow.id").read_text() / "artifacts"
    figures = {path.relative_to(artifacts).with_suffix("").as_posix() for path in artifacts.glob("**/*.png")}
    return points, figures, [path.stem for path in artifacts.iterdir() if path.is_file()]


HELD = {"tensorboard": of_tensorboard, "csv": of_csv, "wandb": of_wandb, "mlflow": of_mlflow}


@pytest.mark.parametrize("logger", ALL)
def test_curves_figures_and_settings_lie_in_the_run(root, logger, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = trained(root, f"held_{logger}", logger)
    points, figures, texts = HELD[logger](run)
    assert points.keys() >= CURVES and figures == FIGURES and "config" in texts
    assert logger == "csv" or "results" in texts
    assert logger == "wandb" or points["train/loss"] == 3
    if logger in ("tensorboard", "mlflow"):
        assert points["val/loss"] == 4  # three epochs, the test
    assert tiny_clip.results(run)["rows"]
    if logger != "tensorboard":
        assert not list(run.glob("events.out*"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("logger", ALL)
def test_a_run_that_goes_on_keeps_what_was_logged(root, logger, monkeypatch):
    name = f"resumed_{logger}"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "test", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trained(root, name, logger)
    run = trained(root, name, logger, "--resume", "--trainer.num_nodes=1")
    points, _, _ = HELD[logger](run)
    assert points.keys() >= CURVES
    assert logger == "wandb" or points["train/loss"] == 3
    evaluation.main(["--report", str(run)])  # figures and settings once more
    assert HELD[logger](run)[0].keys() >= CURVES


@pytest.mark.parametrize("logger", REST)
def test_every_seed_and_its_evaluation_have_their_own(root, logger):
    run = trained(root, f"seeds_{logger}", logger, "--seeds", "1", "2")
    evaluation.main(["--run", str(run)])
    found = [HELD[logger](root / "runs" / f"seeds_{logger}" / f"seed-{seed}")[0] for seed in (1, 2)]
    assert all(each.keys() >= CURVES for each in found)
    tested = HELD[logger](root / "runs" / f"seeds_{logger}-eval" / "seed-2")[0]
    assert "ood/near/knn/auroc" in tested and "train/loss" not in tested


def in_a_process(root, path, *options):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "WANDB"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, str(PROJECT / "train.py"), "--config", path, *options]
    ended = forked.run(command, cwd=root, env=environment, timeout=240)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("logger", ["csv", pytest.param("mlflow", marks=pytest.mark.extras)])
def test_of_two_processes_the_first_logs_and_what_is_overwritten_begins_anew(root, logger):
    path, run = config(root, f"two_{logger}", logger, devices=2, strategy="ddp"), root / "runs" / f"two_{logger}"
    in_a_process(root, path)
    points, figures, _ = HELD[logger](run)
    assert points.keys() >= CURVES and figures == FIGURES
    assert logger == "wandb" or points["train/loss"] == 3
    kept = {each: each.read_text() for each in run.glob("*.id")}
    in_a_process(root, path, "--overwrite", "--trainer.devices=1")
    assert HELD[logger](run)[0] == points
    assert all(each.read_text() != text for each, text in kept.items())


@pytest.mark.parametrize("logger", REST)
def test_a_run_may_be_overwritten_in_the_process_that_made_it(root, logger):
    for _ in range(3):
        run = trained(root, f"again_{logger}", logger, "--overwrite")
        points, _, _ = HELD[logger](run)
        assert points.keys() >= CURVES and (logger == "wandb" or points["train/loss"] == 3)


def test_a_run_may_have_none_and_its_table_is_the_same(root):
    none, two = trained(root, "none", False), trained(root, "two_of_them", ["tensorboard", "csv"])
    assert tiny_clip.results(none)["rows"] == tiny_clip.results(two)["rows"]
    assert not list(none.glob("events.out*")) and not (none / "metrics.csv").exists()
    assert of_tensorboard(two)[0]["train/loss"] == of_csv(two)[0]["train/loss"] == 3


def test_the_logger_may_change_when_a_run_goes_on(root, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "test", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trained(root, "changed", False)
    run = trained(root, "changed", False, "--resume", "--trainer.logger=csv")
    assert "ood/near/knn/auroc" in of_csv(run)[0]
    assert load_config(str(run / "config.yaml")).trainer["logger"] == "csv"


def test_a_logger_of_ones_own_is_given_pictures_and_settings(root, tmp_path):
    entry = {"class_path": "own_watchers.Kept", "init_args": {"path": str(tmp_path / "kept.json")}}
    trained(root, "own_logger", entry)
    told = json.loads((tmp_path / "kept.json").read_text())
    assert set(told["pictures"]) == FIGURES and told["params"]["method"] == "linear_probe"
    assert told["params"]["config"]["trainer"]["logger"] == entry
    assert {key for line in told["metrics"] for key in line} >= CURVES


def test_lightnings_own_by_its_path(root, tmp_path):
    place = {"save_dir": str(tmp_path), "name": "board", "version": "one"}
    trained(root, "by_path", {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": place})
    points, figures, texts = of_tensorboard(tmp_path / "board" / "one")
    assert points.keys() >= CURVES and figures == FIGURES and "results" in texts


@pytest.mark.parametrize("logger, package", [("wandb", "wandb"), ("mlflow", "mlflow"), ("mlflow", "sqlalchemy")])
def test_a_package_that_is_missing_is_one_line(root, logger, package, monkeypatch):
    import clip_ood.experiments.loggers as loggers

    found = loggers.find_spec
    monkeypatch.setattr(loggers, "find_spec", lambda name: None if name == package else found(name))
    monkeypatch.setattr("clip_ood.experiments.run.load_benchmark", lambda *_: pytest.fail("images were listed"))
    with pytest.raises(
        UserError, match=rf"^trainer\.logger: {logger} needs the package {package}: pip install 'clip-ood\[loggers\]'"
    ):
        trained(root, f"missing_{package}", logger)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "tensorbord",
            r"tensorbord must be one of tensorboard, csv, wandb, mlflow, or false.* Did you mean tensorboard\?",
        ),
        ("true", r"true must be one of tensorboard"),
        ("3", r"3 must be one of tensorboard"),
        ("[]", r"\[\] must be one of tensorboard"),
        ("[csv, csv]", r"csv stands there twice"),
        ("[csv, false]", r"must be one of tensorboard"),
        ("my.Logger", r"my\.Logger must be one of .*class_path"),
        ("{class_pth: a.B}", r"a class has no key 'class_pth', expected {class_path: .* Did you mean class_path"),
        ("{init_args: {a: 1}}", r"class_path is null, expected the dotted path of a class"),
        ("{class_path: Mine}", r"class_path is Mine, expected the dotted path"),
        ("{class_path: a.B, init_args: 3}", r"a\.B: init_args is 3, expected its arguments by name"),
    ],
)
def test_what_is_no_logger_is_one_line_before_anything_heavy(value, message):
    with pytest.raises(ConfigError, match=rf"^trainer\.logger: .*{message}") as error:
        load_config("own_images.yaml", [f"--trainer.logger={value}"])
    assert "\n" not in str(error.value)
    told = (
        "import sys; from clip_ood.config.loading import load_config; load_config('own_images.yaml', ['--trainer.logger=csv', "
        "'--trainer.callbacks=[{class_path: a.B}]']); assert not {'torch', 'lightning'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", told], cwd=PROJECT).returncode == 0


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"class_path": "nowhere.Mine"}, r"nowhere\.Mine: there is no module 'nowhere' on the Python path"),
        ({"class_path": "own_watchers.Absent"}, r"own_watchers has no class 'Absent'"),
        ({"class_path": "own_watchers.Neither"}, r"expected a subclass of lightning\.pytorch's Logger, got <class"),
        ({"class_path": "own_watchers.Counting"}, r"expected a subclass of lightning\.pytorch's Logger"),
        ({"class_path": "own_watchers.Abstract"}, r"has no \w+, which each Logger needs"),
        (
            {"class_path": "own_watchers.Kept"},
            r"init_args do not fit: missing a required argument: 'path'; it takes path\.",
        ),
        (
            {"class_path": "own_watchers.Kept", "init_args": {"pth": "a"}},
            r"do not fit: .*; it takes path\. Did you mean path\?",
        ),
    ],
)
def test_a_wrong_class_is_one_line_before_any_image_is_listed(root, entry, message, monkeypatch):
    monkeypatch.setattr("clip_ood.experiments.run.load_benchmark", lambda *_: pytest.fail("images were listed"))
    with pytest.raises(UserError, match=rf"^trainer\.logger: .*{message}") as error:
        trained(root, "wrong_logger", entry)
    assert "\n" not in str(error.value)
    assert not (root / "runs" / "wrong_logger").exists()


def test_a_wrong_class_removes_nothing_of_a_study_that_was_to_be_overwritten(root):
    written = {"config": config(root, "base", False), "studies_root": f"{root}/studies", "shows": "table"}
    (root / "kept.yaml").write_text(yaml.safe_dump(written | {"lines": {"probe": {"detector": "msp"}}}))
    study.main(["--config", str(root / "kept.yaml")])
    with pytest.raises(UserError, match="there is no module 'nowhere'"):
        study.main(["--config", str(root / "kept.yaml"), "--overwrite", "--trainer.logger={class_path: nowhere.Mine}"])
    assert (root / "studies" / "kept" / "probe" / "results.json").is_file()


def test_a_plan_says_what_would_stop_the_run(root, capsys):
    path = config(root, "planned", {"class_path": "own_watchers.Neither"})
    with pytest.raises(SystemExit) as ended:
        train.main(["--config", path, "--plan"])
    out = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert ended.value.code == 1 and "expected a subclass of lightning.pytorch's Logger" in out
