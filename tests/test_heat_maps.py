"""Maps of where an image is unlike the ID images: their geometry, their colours, and where they are given and written."""

from __future__ import annotations

import json
import shutil

import judged_run
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as t

from clip_ood import load
from clip_ood.backbones.backbone import Preprocessing
from clip_ood.config.loading import load_config
from clip_ood.detect.heat_map import OPACITY, UNFAMILIAR, grid, heat_map, seen_by
from clip_ood.errors import UserError
from clip_ood.experiments.benchmarks import load_benchmark
from clip_ood.experiments.patch_maps import patch_maps
from clip_ood.experiments.reporting import draw_again

PREPARED = Preprocessing((32, 32), (0.3, 0.5, 0.6), (0.2, 0.3, 0.4), "bicubic")
END = [t.ToTensor(), t.Normalize(PREPARED.mean, PREPARED.std)]
CROPPED = t.Compose([t.Resize(32, interpolation=t.InterpolationMode.BICUBIC), t.CenterCrop(32), *END])
SQUASHED = t.Compose([t.Resize((32, 32)), *END])
PADDED = t.Compose([t.Pad((0, 25), fill=0), t.Resize((32, 32)), *END])


@pytest.mark.parametrize(
    ("transform", "size", "expected"),
    [
        (CROPPED, (60, 120), (30, 0, 90, 60)),
        (CROPPED, (120, 60), (0, 30, 60, 90)),
        (CROPPED, (16, 16), (0, 0, 16, 16)),
        (SQUASHED, (60, 120), (0, 0, 120, 60)),
        (PADDED, (50, 100), (0, -25, 100, 75)),
        (SQUASHED, (1, 1), (0, 0, 1, 1)),
    ],
)
def test_what_an_encoder_sees_of_a_picture(transform, size, expected):
    tolerance = 0.03 * max(size)
    assert seen_by(transform, PREPARED, size) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("size", [(60, 120), (120, 60), (64, 64)])
def test_the_least_familiar_place_lies_where_it_is_in_the_picture(size):
    scores = torch.ones(16)
    scores[4] = 0.0  # the second row's first patch of 4 × 4
    found = heat_map(scores, Image.new("RGB", size[::-1], "white"), CROPPED, PREPARED, "local_knn")
    height, width = size
    side, place = min(size), np.unravel_index(np.nanargmin(found.pixels.numpy()), size)
    top, left = (height - side) / 2, (width - side) / 2
    assert found.pixels.shape == size and found.patches.shape == (4, 4)
    assert top + side / 4 <= place[0] < top + side / 2 and left <= place[1] < left + side / 4
    seen = (~found.pixels.isnan()).double().mean().item()
    assert seen == pytest.approx(side**2 / (height * width), abs=0.03)


def test_the_lower_a_score_the_more_colour():
    scores = torch.linspace(0, 1, 16)
    found = heat_map(scores, Image.new("RGB", (64, 64), (100, 100, 100)), SQUASHED, PREPARED, "local_knn")
    pixels = np.asarray(found.overlay()).astype(int)
    expected = [round((1 - OPACITY) * 100 + OPACITY * each) for each in UNFAMILIAR]
    assert pixels[0, 0] == pytest.approx(expected, abs=1) and pixels[-1, -1] == pytest.approx([100] * 3, abs=1)
    assert (np.diff(pixels[:, 0, 0] - pixels[:, 0, 2]) <= 1).all()  # from vermilion to grey
    assert (np.asarray(found.overlay(low=-5, high=-4)) == 100).all()
    assert found.captioned().height > found.captioned().width == 256


@pytest.mark.parametrize(("size", "count"), [((224, 224), 195), ((224, 224), 2), ((224, 448), 196)])
def test_patches_that_form_no_grid_are_said(size, count):
    with pytest.raises(UserError, match=f"{count} patches form no grid on an input of {size[0]} × {size[1]}"):
        grid(size, count)


@pytest.fixture(scope="module")
def finished(root):
    evaluation = {"figures": False, "report": False}
    return judged_run.make(root, "heat", "zero_shot", detectors=["knn", "local_knn", "gl_mcm"], evaluation=evaluation)


@pytest.mark.parametrize("column", ["local_knn", "gl_mcm"])
def test_the_map_has_the_scores_of_the_patches(root, finished, column):
    image = root / "data/near/0.png"
    predictor = load(finished, detector=["local_knn", "gl_mcm"])
    found = predictor.heat_map(image, column)
    assert found.pixels.shape == (36, 40) and found.patches.shape == (4, 4) and found.detector == column
    if column == "local_knn":
        assert found.patches.min().item() == pytest.approx(predictor(image)[0].score, rel=1e-5)
    assert torch.equal(predictor.heat_map(Image.open(image), column).patches, found.patches)


def test_an_image_of_the_run_is_not_compared_with_itself(root, finished):
    predictor = load(finished, detector="local_knn")
    owners = set(predictor.detector.owners.tolist())
    images = predictor.images
    copies = [row for row, of in enumerate(images.copies(np.arange(len(images.paths))).tolist()) if of in owners]
    assert copies
    for row in copies:
        known = root / "data/id" / images.paths[row]
        without_file = Image.open(known)  # whose content is not known
        own, other = (predictor.heat_map(each).patches for each in (known, without_file))
        assert (own <= other).all() and (own < other).any()


def test_a_detector_without_patches_is_said_with_those_that_have_them(root, finished):
    predictor = load(finished, detector="knn")
    with pytest.raises(UserError, match=r"knn looks at no patches, .* of this run's detectors, local_knn, gl_mcm can"):
        predictor.heat_map(root / "data/near/0.png")
    with pytest.raises(UserError, match="local_knn was not loaded, but knn: load the run with detector='local_knn'"):
        predictor.heat_map(root / "data/near/0.png", "local_knn")
    alone = judged_run.make(root, "knn_alone", "zero_shot", detectors=["knn"])
    with pytest.raises(
        UserError, match="none of this run's detectors can: run the experiment with local_knn or gl_mcm"
    ):
        load(alone).heat_map(root / "data/near/0.png")


def judge(root, finished, name, column, *options):
    folder = root / name
    out = root / f"{name}.jsonl"
    given = (root / "data/near", "--run", finished, "--out", out, "--overwrite", "--heat-maps", folder)
    judged_run.judged(*given, "--detector", f"{column},knn", *options)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    flagged = [line["path"].rpartition("/")[2] for line in lines if line["is_ood"] and line["detector"] == column]
    return flagged, {path.name: path.read_bytes() for path in folder.rglob("*.png")}


@pytest.mark.parametrize(("column", "rule"), [("local_knn", ("--accept", "0.4")), ("gl_mcm", ("--fdr", "0.999"))])
def test_each_flagged_image_has_a_map(root, finished, column, rule, capsys):
    name = f"maps-{column}"
    flagged, written = judge(root, finished, name, column, *rule)
    assert written.keys() == {f"{each}.png" for each in flagged} and flagged
    assert f"Heat maps of the OOD images, by {column}: {root / name}" in capsys.readouterr().err
    assert judge(root, finished, name, column, *rule) == (flagged, written)


def test_a_file_that_lies_there_is_kept(root, finished):
    folder = root / "kept"
    folder.mkdir()
    for number in range(9):
        (folder / f"{number}.png.png").write_bytes(b"mine")
    flagged, written = judge(root, finished, "kept", "local_knn", "--accept", "0.4")
    mine = {name for name, content in written.items() if content == b"mine"}
    assert len(mine) == 9 and flagged
    assert written.keys() - mine == {each.replace(".png", ".png-2.png") for each in flagged}


def test_the_command_says_which_detectors_have_maps(root, finished):
    with pytest.raises(UserError, match=r"knn looks at no patches, .* local_knn, gl_mcm can: name one of them"):
        judged_run.judged(root / "data/near", "--run", finished, "--heat-maps", root / "none")
    assert not (root / "none").exists()


def test_the_report_shows_maps_without_the_encoder(root, finished, monkeypatch):
    def loaded(*_):
        raise AssertionError("the encoder was loaded")

    monkeypatch.setattr("clip_ood.experiments.extraction.create_backbone", loaded)
    page = draw_again(finished).read_text()
    assert "where <code>local_knn</code> finds it unlike the ID images" in page
    pictures, maps = page.count('<div class="picture"><img'), page.count("is unlike the ID images")
    assert maps == pictures / 2 > 0


def test_a_report_has_no_maps_without_patches(root):
    page = draw_again(judged_run.make(root, "no_patches", "zero_shot", detectors=["knn"])).read_text()
    assert "unlike the ID images" not in page and '<div class="picture"><img' in page


def test_a_report_has_no_maps_once_the_store_is_empty(root):
    keys = {"detectors": ["local_knn"], "features_root": f"{root}/emptied"}
    run = judged_run.make(root, "emptied_store", "zero_shot", **keys)
    shutil.rmtree(root / "emptied")
    assert "unlike the ID images" not in draw_again(run).read_text()


def test_suspects_are_not_compared_with_themselves(root):
    run = judged_run.cross_fitted(root, "suspects", detectors=["knn", "local_knn"])
    config = load_config(str(run / "config.yaml"), [])
    benchmark = load_benchmark(config)
    maps = patch_maps(run, config, benchmark)
    images = benchmark.parts["train"].images
    scores = maps._scores(images, torch.arange(46))
    assert scores.shape == (46, 16) and (scores < 1 - 1e-5).all()
    page = draw_again(run).read_text()
    assert "where <code>local_knn</code>" in page and "is unlike the others" in page
