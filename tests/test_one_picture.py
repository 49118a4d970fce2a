"""One picture has one score: as a path, as a PIL image, as bytes, as a tensor, and in an exported graph."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_pictures import DEEP, FLOATS, PICTURES, PIXELS, SAME, TOO_LARGE, encoded
from PIL import Image
from tiny_clip import PROJECT

import detect
from clip_ood import load
from clip_ood.class_predictions import HEAD
from clip_ood.detect.predictor import Predictor
from clip_ood.detect.saved import SavedDetector
from clip_ood.export.preparation import resize_of
from clip_ood.files.pictures import UnreadableImage, as_picture, pixels, read_image

pytestmark = pytest.mark.extras

ALL = PICTURES | TOO_LARGE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All pictures as files."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, content in ALL.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def predictor(run):
    return load(run, "mahalanobis", accept=0.5)  # the pictures lie on both sides of its threshold


@pytest.fixture(scope="module")
def of_paths(predictor, folder):
    return {name: predictor(folder / name)[0] for name in ALL}


def test_the_pictures_are_told_apart_and_lie_on_both_sides(of_paths):
    assert len({prediction.score for prediction in of_paths.values()}) > 20
    assert {prediction.is_ood for prediction in of_paths.values()} == {True, False}


@pytest.mark.parametrize("name", ALL)
def test_every_way_to_give_a_picture_gives_its_score(name, predictor, folder, of_paths):
    path, expected = folder / name, of_paths[name]
    whole = torch.from_numpy(np.array(read_image(path))).permute(2, 0, 1)
    ways = {
        "str": str(path),
        "bytes": path.read_bytes(),
        "uint8": whole,
        "float": whole / 255,
        "half": whole.half() / 255,
    }
    with path.open("rb") as file:
        ways["file"] = file
        if name in PICTURES:  # others, Pillow refuses to open
            ways |= {"PIL": Image.open(path), "PIL of bytes": Image.open(io.BytesIO(path.read_bytes()))}
            if name not in ("text_last.png", "turned_grey.tif"):  # Pillow refuses one, and maps and scrambles the other
                ways["PIL, loaded"] = Image.open(path)
                ways["PIL, loaded"].load()
        found = {way: predictor(image)[0] for way, image in ways.items()}
    for way, prediction in found.items():
        assert prediction.score == pytest.approx(expected.score, rel=1e-5), way
        assert prediction.is_ood == expected.is_ood, way


def test_detect_says_the_same(run, folder, of_paths, tmp_path):
    arguments = ["--run", run, folder, "--detector", "mahalanobis", "--accept", "0.5", "--out", tmp_path / "out.csv"]
    with pytest.raises(SystemExit):
        detect.main([str(each) for each in arguments])
    rows = {Path(row["path"]).name: row for row in csv.DictReader((tmp_path / "out.csv").open())}
    assert set(rows) == set(ALL)
    for name, row in rows.items():
        assert float(row["score"]) == pytest.approx(of_paths[name].score, rel=1e-5)
        assert row["is_ood"] == str(of_paths[name].is_ood).lower()


@pytest.mark.parametrize("name", TOO_LARGE)
def test_no_text_and_no_profile_hides_a_picture(name, folder, tmp_path):
    (tmp_path / "same.png").write_bytes(SAME[name])
    np.testing.assert_array_equal(np.asarray(read_image(folder / name)), np.asarray(read_image(tmp_path / "same.png")))


def test_a_picture_that_is_opened_stays_of_use_to_its_owner(predictor, folder):
    for name in ("turned.tif", "palette.png", "turned6.jpg", "animation.gif"):
        given, untouched = Image.open(folder / name), Image.open(folder / name)
        predictor(given)
        np.testing.assert_array_equal(np.asarray(given), np.asarray(untouched))


def test_another_frame_that_was_sought_is_the_picture():
    animation = Image.open(io.BytesIO(PICTURES["animation.gif"]))
    animation.seek(1)
    assert not np.asarray(as_picture(animation)).any()  # its second frame is black


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "I", "I;16"]
)
def test_a_picture_of_any_mode_in_memory_becomes_rgb(mode):
    image = Image.fromarray(PIXELS)
    if mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[mode])
    image = Image.fromarray(DEEP) if mode == "I;16" else image.convert(mode)
    assert as_picture(image).mode == "RGB"


def test_pixels_without_a_stated_range_are_refused_however_they_come(predictor, tmp_path):
    (tmp_path / "floats.tif").write_bytes(FLOATS)
    opened = Image.open(tmp_path / "floats.tif")
    opened.load()
    for image in (tmp_path / "floats.tif", FLOATS, Image.open(tmp_path / "floats.tif"), opened):
        with pytest.raises(UnreadableImage, match="floating-point pixels have no stated range"):
            predictor([image])


@pytest.mark.parametrize("value", [-1, 65536, 2**31 - 1])
def test_whole_numbers_beyond_16_bits_are_refused_and_not_cut_off(value, tmp_path):
    grey = Image.fromarray(np.array([[0, 65535, value]], np.int32))
    grey.save(tmp_path / "wide.tif")
    for read in (lambda: as_picture(grey), lambda: read_image(tmp_path / "wide.tif")):
        with pytest.raises(UnreadableImage, match="pixels of more than 16 bits have no stated range"):
            read()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 8, 8), r"shape \(3, H, W\), not \(1, 8, 8\)"),
        (torch.zeros(3, 0, 8), r"shape \(3, H, W\), not \(3, 0, 8\)"),
        (torch.zeros(3, 8, 8, dtype=torch.int32), r"uint8, or floats in \[0, 1\], not torch.int32"),
        (torch.full((3, 8, 8), torch.nan), r"pixels in \[0, 1\], not nan"),
        (b"no picture", "cannot identify image file"),
        (encoded(Image.new("RGB", (1, 300)), "PNG"), "one side is over 200 times the other"),
        (Image.new("RGB", (1, 300)), "one side is over 200 times the other"),
    ],
)
def test_what_is_no_picture_is_named(image, message, predictor):
    with pytest.raises(ValueError, match=message):
        predictor([image])


# The graph, prepared for as docs/new_images.md shows


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """A folder with what an export writes, and nothing else."""
    folder = tmp_path_factory.mktemp("exported")
    detect.main(["--run", str(run), "--export", str(folder / "model.onnx")])
    assert sorted(path.name for path in folder.iterdir()) == ["clip_ood_pixels.py", "model.onnx"]
    return folder


def snippet() -> str:
    """The page's lines that run an exported graph."""
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (PROJECT / "docs" / "new_images.md").read_text(), re.MULTILINE | re.DOTALL
    )
    return next(block for block in blocks if "onnxruntime" in block)


def test_the_readmes_lines_give_the_predictions_of_the_run(run, folder, exported, tmp_path, monkeypatch):
    for file in exported.iterdir():
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("builtins.print", lambda *_: None)
    saved = SavedDetector(run)
    backbone = saved.backbone()
    judges = {column: Predictor(saved, backbone, column) for column in saved.columns}
    assert len(judges) >= 17
    for each in judges.values():
        each.by, each.bank = HEAD, None  # as the graph, whatever is right most often on ID val
    (tmp_path / "photos").mkdir()
    scores: dict[str, list[tuple[float, float]]] = {column: [] for column in judges}
    for name, content in ALL.items():
        (tmp_path / "photos" / "a.jpg").write_bytes(content)
        space: dict = {}
        exec(snippet(), space)
        for column, one in judges.items():
            prediction, score = one(folder / name)[0], float(space["said"][f"score_{column}"][0])
            assert (score < space["about"]["thresholds"][column]) == prediction.is_ood, (name, column)
            scores[column].append((score, prediction.score))
        assert space["about"]["class_names"][space["said"]["predicted"][0]] == prediction.predicted_class
    for column, pairs in scores.items():
        found, expected = np.array(pairs).T
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=column)
    assert {found < space["about"]["thresholds"]["mahalanobis"] for found, _ in scores["mahalanobis"]} == {True, False}


def test_what_lies_beside_a_graph_needs_pillow_and_numpy_and_pillow_heif_if_it_is_there(exported):
    tree = ast.parse((exported / "clip_ood_pixels.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} - sys.stdlib_module_names == {"PIL", "numpy", "pillow_heif"}


def test_pixels_are_those_of_the_encoders_transform(run, folder, exported):
    from onnxruntime import InferenceSession

    backbone = SavedDetector(run).backbone()
    session = InferenceSession(exported / "model.onnx")
    about = json.loads(session.get_modelmeta().custom_metadata_map["clip_ood"])
    mean, std = (torch.tensor(about[each])[:, None, None] for each in ("mean", "std"))
    for name in ALL:
        expected = backbone.transform(read_image(folder / name))
        for image in (folder / name, ALL[name], *([Image.open(folder / name)] if name in PICTURES else [])):
            found = torch.from_numpy(pixels(image, about))
            torch.testing.assert_close((found[0] - mean) / std, expected, rtol=0, atol=1e-6)


def test_ways_to_resize_are_told_or_refused():
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from timm.data import create_transform

    from clip_ood.backbones.backbone import Preprocessing

    def told(transform, size, interpolation):
        grey = (0.5, 0.5, 0.5)
        return resize_of(transform, Preprocessing(size, grey, grey, interpolation))

    grey = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    for mode, expected in (("shortest", 64), ("squash", [64, 64]), ("longest", None)):
        prepared = PreprocessCfg(size=64, resize_mode=mode, interpolation="bicubic", **grey)
        assert told(image_transform_v2(prepared, is_train=False), (64, 64), "bicubic") == expected, mode
    for mode, expected in (("center", 72), ("squash", [72, 72]), ("border", None)):
        transform = create_transform((3, 64, 64), interpolation="bilinear", crop_pct=0.88, crop_mode=mode, **grey)
        assert told(transform, (64, 64), "bilinear") == expected, mode
    with pytest.raises(ValueError, match="resized otherwise than here: Compose"):
        pixels(encoded(Image.new("RGB", (9, 9)), "PNG"), {"resize": None, "transform": "Compose(…)"})
