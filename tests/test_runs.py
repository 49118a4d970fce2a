"""Whole runs on random weights and generated images: files, rows, omissions, the store, errors."""

from __future__ import annotations

import csv
import json

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import clip_ood.experiments.extraction as extraction
import train
from clip_ood.errors import ConfigError, UserError

SIZES = {"id/cat": 13, "id/dog": 11, "near": 7, "far": 5}


@pytest.fixture
def images(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for place, count in SIZES.items():
        folder = tmp_path / "data" / place
        folder.mkdir(parents=True)
        for index in range(count):
            pixels = torch.randint(256, (8, 8, 3), generator=generator, dtype=torch.uint8).numpy()
            Image.fromarray(pixels).resize((40, 32)).save(folder / f"{index}.png")
    return tmp_path


def run(root, method="{zero_shot: {}}", *more):
    config = root / "tiny.yaml"
    config.write_text(
        f"""
data: {{root: {root}/data, id: id, ood: {{near: near, far: {{folder: far, group: far}}}}, batch_size: 8}}
backbone: {{library: timm, model: test_vit}}
method: {method}
evaluation: {{figures: true}}
runs_root: {root}/runs
features_root: {root}/features
trainer: {{accelerator: cpu, devices: 1, enable_progress_bar: false}}
"""
    )
    train.main(["--config", str(config), *more])
    return root / "runs" / "tiny"


def test_a_probe_run_writes_the_files_of_the_contract(images):
    folder = run(images, "{linear_probe: {epochs: 3}}")
    results = json.loads((folder / "results.json").read_text())
    assert {row["detector"] for row in results["rows"]} >= {"knn", "msp", "rmd", "rmd_logits"}
    assert [each["detector"] for each in results["omitted"]] == ["mcm", "mcm_sigmoid", "neglabel", "csp", "ensemble"]
    assert {(row["ood"], row["n_id"], row["n_ood"]) for row in results["rows"]} == {
        ("near", 7, 7),
        ("far", 7, 5),
        ("mean", 7, 12),
    }
    with (folder / "results.csv").open() as file:
        assert next(csv.reader(file))[:5] == ["detector", "setting", "ood", "group", "auroc"]
    scores = pq.read_table(folder / "scores.parquet")
    assert (
        scores.column_names[:6] == ["set", "role", "path", "label", "prediction", "image"]
        and len(scores) == 5 + 7 + 7 + 5
    )


def test_a_second_run_loads_no_encoder(images, monkeypatch):
    run(images)

    def loaded(spec):
        raise AssertionError("the encoder was loaded")

    monkeypatch.setattr(extraction, "create_backbone", loaded)
    run(images)
    assert (images / "runs" / "tiny-2" / "results.json").is_file()


def test_unreadable_images_are_listed_and_too_many_are_an_error(images, capsys):
    broken = [images / "data" / "near" / f"broken{number}.png" for number in range(6)]
    for path in broken[1:]:
        path.touch()
    folder = run(images)  # five may be in any set
    assert {row["n_ood"] for row in json.loads((folder / "results.json").read_text())["rows"]} == {7, 5, 12}
    lines = (folder / "unreadable.csv").read_text().splitlines()
    said = capsys.readouterr().out
    assert len(lines) == 6 and all(path.name in said for path in broken[1:])
    broken[0].touch()
    with pytest.raises(
        ValueError, match=r"near: 6 of 13 images cannot be read, and 5 may be .*data\.max_unreadable = 0\.01"
    ):
        run(images, "{zero_shot: {}}", "--name=other")
    folder = run(images, "{zero_shot: {}}", "--data.max_unreadable=0.47", "--overwrite")
    assert len((folder / "unreadable.csv").read_text().splitlines()) == 7


def test_of_many_unreadable_images_ten_are_shown_and_all_are_listed(images, capsys):
    for number in range(12):
        (images / "data" / "near" / f"broken{number:02d}\x1b[2J.png").touch()
    with pytest.raises(ValueError, match="12 of 19") as raised:
        run(images)
    told = str(raised.value)
    assert told.count("broken") == 10 and "and 2 more" in told and "\x1b" not in told
    assert str(images / "runs" / "tiny" / "unreadable.csv") in told
    assert len((images / "runs" / "tiny" / "unreadable.csv").read_text().splitlines()) == 13
    assert "\x1b" not in capsys.readouterr().out


def test_the_list_of_a_run_that_did_not_replace_another_is_kept(images, capsys):
    run(images)
    for number in range(6):
        (images / "data" / "near" / f"broken{number}.png").touch()
    with pytest.raises(ValueError, match="6 of 13"):
        run(images, "{zero_shot: {}}", "--overwrite")
    assert (images / "runs" / "tiny" / "results.json").is_file()
    kept = images / "runs" / "tiny.unreadable.csv"
    assert len(kept.read_text().splitlines()) == 7 and str(kept) in capsys.readouterr().out


def test_plp_without_a_text_encoder_is_an_error(images):
    with pytest.raises(ConfigError, match="needs a text encoder"):
        run(images, "{plp: {}}")


@pytest.mark.parametrize("wrong", ["--data.idd=x", "--detectors=[knnn]", "--backbone.model=test_vot"])
def test_a_mistyped_name_is_named(images, wrong):
    with pytest.raises(UserError, match=r"idd|knnn|test_vot"):
        run(images, "{zero_shot: {}}", wrong)


def test_devices_that_are_not_there_are_named_and_leave_no_unfinished_run(images, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=r"There are 0 CUDA GPUs here\. Change trainer\.devices"):
        run(images, "{zero_shot: {}}", "--trainer.accelerator=cuda", "--trainer.devices=4")
    assert not (images / "runs" / "tiny" / "config.yaml").exists()
