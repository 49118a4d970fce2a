"""clip-ood recalibrate: thresholds by images that a person confirmed, which images may set them, and what they promise then."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny_clip import PROJECT

from clip_ood import load
from clip_ood.calibration import Calibration
from clip_ood.detect.confirmed import JudgedImage, check_not_truncated, confirmed
from clip_ood.detect.recalibrated import calibrations_of
from clip_ood.detect.saved import SavedDetector
from clip_ood.errors import UserError
from clip_ood.experiments.commands import recalibrate
from clip_ood.features.identity import identity_of


@pytest.fixture
def photos(tmp_path):
    """24 images that no run has seen."""
    folder, generator = tmp_path / "photos", np.random.default_rng(5)
    folder.mkdir()
    for number in range(24):
        pixels = generator.normal(100, 60, (8, 8, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).resize((40, 36)).save(folder / f"{number:02}.png")
    return folder


def recalibrated(*arguments):
    recalibrate.main([str(each) for each in arguments])


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_thresholds_are_those_of_the_confirmed_images(run, photos, tmp_path, capsys):
    before, new = files_of(run / "detector"), tmp_path / "new"
    recalibrated("--run", run, photos, "--gathered", "all", "--out", new)
    assert files_of(run / "detector") == before
    images = sorted(photos.iterdir())
    for column in ("knn", "msp", "rmd"):
        scores = [each.score for each in load(run, column)(images)]
        predictor = load(new, column)
        assert [each.score for each in predictor(images)] == scores
        assert predictor.threshold == Calibration(torch.tensor(scores)).threshold(0.95) != load(run, column).threshold
    said = capsys.readouterr().out
    saved = SavedDetector(new)
    assert saved.manifest["calibration"]["n"] == 24 and saved.calibration("knn").by == "split"
    about = saved.manifest["recalibrated"]
    assert (about["images"], about["gathered"], about["paths"]) == (24, "all", [str(photos)])
    assert about["before"] == SavedDetector(run).manifest["digest"] and about["time"].endswith("+00:00")
    rows = pq.read_table(new / "calibrated_on.parquet").to_pylist()
    assert {row["path"]: row["content"] for row in rows} == {str(p): identity_of(p.read_bytes()) for p in images}
    flagged = sum(each.is_ood for each in load(run)(images))
    assert f"the old threshold flags {flagged} of 24" in said and "calibrated on 24 confirmed images" in said


@pytest.mark.slow
def test_images_that_were_learnt_from_or_rejected_do_not_calibrate(run, photos, tmp_path, capsys):
    bank = SavedDetector(run).bank_images()
    learnt = [run.parents[1] / "data" / "id" / bank.paths[place] for place in (0, 3)]
    shutil.copy(photos / "00.png", photos / "again.png")
    decisions = tmp_path / "decisions.csv"
    words = {path: "keep" for path in photos.iterdir()} | {photos / "03.png": "reject", photos / "04.png": "relabel"}
    lines = [f"{path},{word},{'cat' if word == 'relabel' else ''}" for path, word in words.items()]
    decisions.write_text("\n".join(["path,decision,label", *lines]) + "\n")
    command = ["--run", run, photos, "--gathered", "sample", "--decisions", decisions]
    recalibrated(*command, *learnt, "--out", tmp_path / "new")
    saved = SavedDetector(tmp_path / "new")
    assert saved.manifest["recalibrated"]["left_out"] == {"learnt from": 2, "copies": 1, "rejected": 1}
    paths = [row["path"] for row in pq.read_table(tmp_path / "new/calibrated_on.parquet").to_pylist()]
    assert len(paths) == len(saved.calibration("knn")) == 23 and str(photos / "03.png") not in paths
    said = capsys.readouterr().out
    for what in (
        "1 that are copies of others",
        "1 that are odd by your decisions",
        "2 that the detector has learnt from",
    ):
        assert what in said
    decisions.write_text("\n".join(["path,decision,label", *lines[:-1]]) + "\n")
    with pytest.raises(UserError, match=r"1 of 25 images have no decision in .*decisions.csv \(the first: "):
        recalibrated(*command, "--out", tmp_path / "other")
    with pytest.raises(
        UserError, match=r"takes 19 confirmed images or more, and there are 3 \(left out, 2 learnt from\)"
    ):
        recalibrated(
            "--run", run, *sorted(photos.iterdir())[:3], *learnt, "--gathered", "all", "--out", tmp_path / "few"
        )
    assert not (tmp_path / "other").exists() and not (tmp_path / "few").exists()


@pytest.mark.slow
def test_a_new_folder_replaces_nothing_but_what_a_killed_call_left(run, photos, tmp_path):
    (tmp_path / ".new.partial").mkdir()
    (tmp_path / ".new.partial" / "left.txt").touch()
    recalibrated("--run", run, photos, "--gathered", "all", "--out", tmp_path / "new")
    assert not (tmp_path / ".new.partial").exists() and not (tmp_path / "new" / "left.txt").exists()
    with pytest.raises(UserError, match="new is there already, and is kept"):
        recalibrated("--run", run, photos, "--gathered", "all", "--out", tmp_path / "new")
    again = ["--run", tmp_path / "new", photos, "--gathered", "all", "--out", tmp_path / "third"]
    recalibrated(*again)  # what was calibrated on does not travel on
    assert set(files_of(tmp_path / "third")) == set(files_of(tmp_path / "new"))
    assert (
        SavedDetector(tmp_path / "third").manifest["recalibrated"]["before"]
        == json.loads((tmp_path / "new" / "detector.json").read_text())["digest"]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--gathered accepted", "images that were accepted are a truncated sample: their scores lie above"),
        ("--gathered flagged", "images that were flagged are a truncated sample: their scores lie below"),
        ("tests tests/ --gathered all", "tests is named twice"),
        ("--gathered all --decisions no.csv", "--decisions: there is no file no.csv"),
        ("--gathered all --decisions pyproject.toml", "pyproject.toml, line 1"),
    ],
)
def test_what_cannot_set_a_threshold_is_refused_before_anything_heavy_is_imported(photos, tmp_path, options, message):
    command = f"""
import sys
from clip_ood.errors import UserError
from clip_ood.experiments.commands.recalibrate import main
try:
    main(["--run", "x", {str(photos)!r}, "--out", {str(tmp_path / "new")!r}, *{options.split()!r}])
except UserError as error:
    print(error, "torch" in sys.modules)
"""
    said = subprocess.run([sys.executable, "-c", command], cwd=PROJECT, capture_output=True, text=True).stdout
    assert message in said and said.strip().endswith("False")


def judged(scores, threshold):
    return [
        JudgedImage(str(n), f"{n:032x}", {"knn": score}, {"knn": score < threshold})
        for n, score in enumerate(scores.tolist())
    ]


def test_accepted_images_are_recognised_by_what_is_missing():
    generator = torch.Generator().manual_seed(0)
    old = {"knn": Calibration(torch.randn(1000, generator=generator))}
    threshold = old["knn"].threshold(0.95)
    everything = judged(torch.randn(200, generator=generator), threshold)
    accepted = [each for each in everything if not each.is_ood["knn"]]
    check_not_truncated(everything, old, 0.95)
    check_not_truncated(accepted[:40], old, 0.95)  # too few to tell
    with pytest.raises(
        UserError, match=r"knn flags none of these \d+ images, although about 10 ID .* truncated sample"
    ):
        check_not_truncated(accepted, old, 0.95)
    odd = judged(torch.tensor([threshold - 1]), threshold)  # rejected later, and yet it was looked at
    check_not_truncated(accepted + odd, old, 0.95)


def test_the_chance_that_none_is_flagged_is_what_happens():
    generator, none = torch.Generator().manual_seed(1), 0
    for _ in range(4000):
        scores = torch.rand(99 + 20, generator=generator)
        none += (scores[99:] >= Calibration(scores[:99]).threshold(0.95)).all().item()
    assert Calibration(torch.rand(99)).chance_of_none(20, 0.95) == pytest.approx(none / 4000, abs=0.025)


def test_new_id_images_are_flagged_no_more_often_than_stated_and_with_accepted_ones_alone_they_are():
    """Images have changed since the run: their scores are lower and spread more."""
    generator, realised = torch.Generator().manual_seed(2), {"old": [], "all": [], "accepted": []}
    for _ in range(400):
        old = Calibration(torch.randn(99, generator=generator))
        images = judged(1.5 * torch.randn(199, generator=generator) - 0.5, old.threshold(0.95))
        new = 1.5 * torch.randn(500, generator=generator) - 0.5
        found = confirmed(images).images
        chosen = {"all": found, "accepted": [each for each in found if not each.is_ood["knn"]]}
        thresholds = {
            name: calibrations_of(each, ["knn"], None)["knn"].threshold(0.95) for name, each in chosen.items()
        }
        for name, threshold in (thresholds | {"old": old.threshold(0.95)}).items():
            realised[name].append((new < threshold).double().mean().item())
    means = {name: np.mean(each) for name, each in realised.items()}
    assert means["all"] == pytest.approx(0.05, abs=3 * np.std(realised["all"]) / 20)
    assert means["old"] > 0.15 and means["accepted"] > 0.15
