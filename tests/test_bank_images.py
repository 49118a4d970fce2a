"""A detector's folder names the ID images of its bank, by which new images are recognised and explained."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import judged_run
import numpy as np
import pytest
import torch

from clip_ood import load
from clip_ood.detect.bank_images import FILE, BankImages
from clip_ood.detect.manifest import MANIFEST, DetectorFolderError
from clip_ood.detect.save import hashes, seal
from clip_ood.errors import UserError
from clip_ood.files.records import Unfit


@pytest.fixture(scope="module")
def run(root):
    return judged_run.with_a_copy(root)


def test_own_images_are_recognised_and_keep_their_scores(root, run):
    scored = judged_run.scores(run, "train")
    predictor = load(run, detector="all", nearest=2)
    own, new = root / "data/id/dog/3.png", root / "data/near/0.png"
    found = predictor([own, own.read_bytes(), new])
    for prediction in found[:6]:
        assert prediction.copy_of == "dog/3.png"
        assert prediction.score == pytest.approx(scored["dog/3.png"][prediction.detector], rel=1e-6)
    assert all(each.copy_of is None for each in found[6:])
    assert "dog/3.png" not in [each.path for each in found[0].nearest] and len(found[0].nearest) == 2
    assert found[0].nearest[0].cosine == pytest.approx(found[0].score)
    assert found[6].nearest[0].cosine == pytest.approx(found[6].score)


def test_neighbours_and_copies_stand_in_the_files(root, run, tmp_path, capsys):
    out = tmp_path / "out.csv"
    judged_run.judged("--run", run, root / "data/id/dog", root / "data/near", "--nearest", 3, "--out", out)
    rows = judged_run.read(out)
    assert [row["copy_of"] for row in rows[:16]] == [f"dog/{n}" for n in sorted(f"{n}.png" for n in range(16))]
    assert {row["copy_of"] for row in rows[16:]} == {""}
    near = json.loads(rows[-1]["nearest"])
    assert len(near) == 3 and near[0]["cosine"] == pytest.approx(float(rows[-1]["score"]))
    assert "16 of these images are copies of ID images of the run" in capsys.readouterr().err


def test_too_many_neighbours_and_a_folder_that_names_no_images(root, run, tmp_path):
    with pytest.raises(UserError, match="nearest = 46, expected 1 to 45"):
        load(run, nearest=46)
    for wrong in (-1, 1.5, "3"):
        with pytest.raises(UserError, match=r"nearest = .*expected a whole number, 0 or more"):
            load(run, nearest=wrong)
    nameless = tmp_path / "detector"
    shutil.copytree(run / "detector", nameless)
    with (nameless / FILE).open("ab") as file:
        file.write(b"x")
    with pytest.raises(DetectorFolderError, match="is not the file that was saved"):
        load(nameless)


def test_names_that_are_not_those_of_the_bank_are_refused(run, tmp_path):
    folder = tmp_path / "detector"
    shutil.copytree(run / "detector", folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    images = BankImages.read(folder / FILE)
    replace(images, rows=images.rows + 100, copy_of=images.copy_of + 100).write(folder)
    seal(folder, manifest | {"files": hashes(folder, [folder / name for name in manifest["files"]])})
    load(folder)
    with pytest.raises(DetectorFolderError, match=r"bank.parquet .* does not name all images of the bank"):
        load(folder, nearest=2)


def test_bank_images_come_back_as_they_were_written(tmp_path):
    contents = np.array([[3, 1], [2, 0], [3, 2]], np.uint64)
    images = BankImages(
        ["a.png", "b\udce9.png", "c.png"],
        contents,
        np.array([0, 4, 7]),
        np.array([0, 4, 0]),
        {"knn": np.ones(3, np.float32)},
    )
    images.write(tmp_path)
    back = BankImages.read(tmp_path / FILE)
    assert back.paths == images.paths and np.array_equal(back.contents, contents)
    assert back.find(contents[::-1]).tolist() == [2, 1, 0]
    assert back.find(np.array([[3, 9]], np.uint64)).tolist() == [-1]
    assert back.copies(np.array([2, -1, 1])).tolist() == [0, -1, 4]
    assert back.names(torch.tensor([7, 0])) == ["c.png", "a.png"]


def test_damaged_bank_images_are_told(tmp_path):
    contents = np.zeros((2, 2), np.uint64)
    BankImages(["a", "b"], contents, np.array([1, 0]), np.array([1, 0])).write(tmp_path)
    with pytest.raises(Unfit, match="rows are not in order"):
        BankImages.read(tmp_path / FILE)
    BankImages(["a", "b"], contents, np.array([0, 1]), np.array([0, 5])).write(tmp_path)
    with pytest.raises(Unfit, match="a copy has no original"):
        BankImages.read(tmp_path / FILE)
    (tmp_path / FILE).write_bytes(b"PAR1")
    with pytest.raises(Unfit):
        BankImages.read(tmp_path / FILE)
