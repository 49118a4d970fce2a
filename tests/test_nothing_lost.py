"""A refused command leaves what was there; a run is gone on with, and a head scored, on the contents that it was trained on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import forked
import pyarrow.parquet as pq
import pytest
import tiny_clip
import torch
import yaml
from PIL import Image
from test_resume import PROBE, content, refuses, stopped

import eval as evaluation
import study
import train
from clip_ood import load
from clip_ood.config.loading import dump, load_config
from clip_ood.errors import ConfigError

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def kept(root):
    """A finished run with a note of its user's."""
    train.main(["--config", tiny_clip.config(root, "kept", PROBE)])
    (root / "runs" / "kept" / "notes.txt").write_text("mine")
    return root / "runs" / "kept"


def test_resume_and_overwrite_together_are_refused_before_anything_goes(root, kept):
    work = lambda: train.main(["--config", str(root / "kept.yaml"), "--resume", "--overwrite"])  # noqa: E731
    refuses(kept, work, "--resume goes on with a run and --overwrite starts it anew: give one of them")


@pytest.mark.parametrize(
    "wrong",
    [
        "--data.id.class_names=[a, b]",
        "--evaluation.bank_without=/nowhere",
        "--method={finetune: {batch_size: 4000}}",
        "--trainer.accelerator=gpu",
    ],
)
def test_a_run_that_is_not_replaced_after_all_comes_back(root, kept, wrong):
    before = content(kept)
    with pytest.raises((ConfigError, ValueError)):
        train.main(["--config", str(root / "kept.yaml"), "--overwrite", wrong])
    assert content(kept) == before and not list((root / "runs").glob(".*"))


def test_a_run_that_is_replaced_goes(root, kept):
    config = tiny_clip.config(root, "replaced", {"zero_shot": {}})
    evaluation.main(["--config", config])
    (root / "runs" / "replaced" / "old.txt").touch()
    evaluation.main(["--config", config, "--overwrite"])
    assert not (root / "runs" / "replaced" / "old.txt").exists() and not list((root / "runs").glob(".*"))


def test_a_kill_while_a_run_is_replaced_loses_neither(root):
    config = tiny_clip.config(root, "twice", PROBE)
    train.main(["--config", config])
    before = content(root / "runs" / "twice")
    stopped_hard(config)
    assert not (root / "runs" / "twice" / "results.json").exists()
    with pytest.raises(ConfigError):
        train.main(["--config", config, "--overwrite", "--trainer.accelerator=gpu"])
    assert content(root / "runs" / "twice") == before


def stopped_hard(config):
    """`--overwrite` killed after it has begun: nothing could be put back."""
    code = f"""
import os, signal, sys
sys.path[:0] = [{str(PROJECT)!r}]
import train
from lightning.pytorch import Trainer
Trainer.test = lambda *arguments, **more: os.kill(os.getpid(), signal.SIGKILL)
train.main(["--config", {config!r}, "--overwrite"])
"""
    assert forked.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL


@pytest.mark.parametrize("name", ["../victim", "/tmp/victim", ".", ".."])
def test_a_study_lies_below_its_root(root, name):
    victim = root / "victim"
    victim.mkdir(exist_ok=True)
    (victim / "precious.txt").touch()
    keys = {"config": tiny_clip.config(root, "base", PROBE), "studies_root": f"{root}/studies", "shows": "table"}
    keys |= {"axes": {}, "lines": {"knn": {"detector": "knn"}}}
    path = root / "study.yaml"
    path.write_text(yaml.safe_dump(keys))
    with pytest.raises(ConfigError, match="must be a plain folder name"):
        study.main(["--config", str(path), f"--name={name}", "--overwrite"])
    assert (victim / "precious.txt").exists()


def test_overwriting_a_study_removes_its_runs_alone(root):
    keys = {"config": tiny_clip.config(root, "base", PROBE), "studies_root": f"{root}/studies", "shows": "table"}
    keys |= {"axes": {}, "lines": {"knn": {"detector": "knn", "changes": {"method": {"zero_shot": {}}}}}}
    path = root / "again.yaml"
    path.write_text(yaml.safe_dump(keys))
    study.main(["--config", str(path)])
    folder = root / "studies" / "again"
    (folder / "precious.txt").touch()
    (run,) = (each.parent for each in folder.glob("*/results.json"))
    (run / "old.txt").touch()
    study.main(["--config", str(path), "--overwrite"])
    assert (folder / "precious.txt").exists() and (run / "results.json").exists() and not (run / "old.txt").exists()


def test_a_refused_resume_can_be_gone_on_with(root):
    config = tiny_clip.config(root, "refused", PROBE)
    stopped(config)
    run = root / "runs" / "refused"
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match="There are 0 CUDA GPUs here"):
        train.main(["--config", config, "--resume", "--trainer.accelerator=gpu"])
    assert (run / "config.yaml").read_bytes() == before
    train.main(["--config", config, "--resume"])
    assert (run / "results.json").is_file()


@pytest.fixture
def other_weights(root):
    path = root / "clip" / "open_clip_pytorch_model.bin"
    kept = path.read_bytes()
    state = torch.load(path, weights_only=True)
    torch.save({name: value + 0.1 if value.is_floating_point() else value for name, value in state.items()}, path)
    yield
    path.write_bytes(kept)


@pytest.fixture
def other_pixels(root):
    place = root / "data" / "id"
    shutil.copytree(place, root / "kept_id")
    for path in (place / "cat").iterdir():
        other = place / "dog" / path.name
        other.rename(place / "swapped.png")
        path.rename(other)
        (place / "swapped.png").rename(path)
    yield
    shutil.rmtree(place)
    (root / "kept_id").rename(place)


@pytest.fixture(scope="module")
def unfinished(root):
    config = tiny_clip.config(root, "unfinished", PROBE)
    stopped(config)
    return config


@pytest.mark.parametrize(
    ("changed", "told"), [("other_weights", "the encoder's weights"), ("other_pixels", "the images of")]
)
def test_other_contents_under_the_same_names_are_told(root, kept, unfinished, changed, told, request):
    request.getfixturevalue(changed)
    with pytest.raises(ConfigError, match=f"unfinished was begun with others under the same names: .*{told}"):
        train.main(["--config", unfinished, "--resume"])
    with pytest.raises(ConfigError, match=f"kept was begun with others under the same names: .*{told}"):
        evaluation.main(["--run", str(kept)])
    assert not (root / "runs" / "kept-eval").exists() or not (root / "runs" / "kept-eval" / "results.json").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("--method={plp: {}}", "method: linear_probe → plp"),
        ("--method.linear_probe.lr=0.9", "method.linear_probe.lr: 0.01 → 0.9"),
        ("--method={finetune: {}}", "method: linear_probe → finetune"),
        ("--backbone={library: timm, model: test_vit}", "backbone.library: open_clip → timm"),
    ],
)
def test_a_head_is_scored_as_what_it_is(kept, change, told):
    refuses(kept, lambda: evaluation.main(["--run", str(kept), change]), "trained its head under other settings", told)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_record_is_named(root, unfinished, text):
    run = root / "runs" / "damaged"
    shutil.copytree(root / "runs" / "unfinished", run)
    (run / "images.json").write_text(text)
    with pytest.raises(ConfigError, match=r"images\.json is damaged"):
        train.main(["--config", tiny_clip.config(root, "damaged", PROBE), "--resume"])
    shutil.rmtree(run)


# Names that mean something elsewhere


def test_odd_names_come_through_a_whole_run(root):
    """Brackets are rich's markup, a dot parts names in a detector's file, a byte that is no UTF-8 fits in no table."""
    place = root / "data" / "odd"
    place.mkdir()
    for index in range(3):
        Image.new("RGB", (8, 8), (index * 80, 0, 0)).save(place / f"{index}.png")
    os.rename(place / "2.png", os.fsencode(place) + b"/\xff.png")
    detectors = [{"name": "mahalanobis", "as": "m"}, {"name": "rmd", "as": "m.x"}, {"name": "knn", "as": "[red]"}]
    data = {"root": f"{root}/data", "id": "id", "ood": {"[/]": "odd", "[red]": "near"}, "batch_size": 8}
    train.main(["--config", tiny_clip.config(root, "odd", PROBE, data=data, detectors=detectors)])
    run = root / "runs" / "odd"
    assert {row["detector"] for row in tiny_clip.results(run)["rows"]} == {"m", "m.x", "[red]"}
    assert "\\xff.png" in pq.read_table(run / "scores.parquet")["path"].to_pylist()
    for column in ("m", "m.x", "[red]"):
        assert load(run, detector=column, accept=0.8)(root / "data" / "near" / "0.png")[0].detector == column


@pytest.mark.parametrize("name", ["a\x85b", "a\u2028b", "a\u2029b", "\x85", "plain"])
def test_a_config_with_a_line_end_of_unicode_is_read_back(root, name):
    config = load_config(tiny_clip.config(root, "read", PROBE), [f"--data.ood.x={name}"])
    (root / "back.yaml").write_text(dump(config), encoding="utf-8")
    assert load_config(str(root / "back.yaml")) == config


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"name": "knn", "as": ["a"]}, r"'as' is \['a'\], expected the name of a column"),
        ({"name": "knn", "as": "a/b"}, "'as' is 'a/b', expected the name of a column, without slashes"),
        ({"name": "knn", "k": True}, "k"),
        ({"name": "gen", "m": True}, "m"),
    ],
)
def test_parameters_of_another_kind_are_named(root, spec, told):
    with pytest.raises(ValueError, match=told):
        evaluation.main(["--config", tiny_clip.config(root, "wrong", {"zero_shot": {}}, detectors=[spec])])


def test_yaml_without_an_end_is_told(root):
    path = Path(root, "deep.yaml")
    path.write_text("detectors: " + "[" * 3000)
    with pytest.raises(ConfigError, match="deep"):
        load_config(str(path))


def test_the_kept_run_is_as_it_was(kept):
    assert (kept / "notes.txt").read_text() == "mine" and json.loads((kept / "results.json").read_text())["rows"]
