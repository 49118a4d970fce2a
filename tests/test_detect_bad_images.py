"""detect.py on images that cannot be judged: the others are judged, and these listed with a reason."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from judged_run import judged, read
from PIL import Image

from clip_ood.backbones.open_clip_backbone import OpenClipBackbone
from clip_ood.experiments import verdicts as verdicts_module

pytestmark = pytest.mark.slow


def bad_folder(folder: Path, good: int) -> Path:
    """Good images, and everything that a folder of uploads can hold beside them."""
    folder.mkdir()
    generator = np.random.default_rng(1)
    for number in range(good):
        Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"good{number:04d}.png")
    whole = (folder / "good0000.png").read_bytes()
    for number in range(3):
        (folder / f"truncated{number}.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").write_text("no image")
    bomb = Image.new("1", (30_000, 30_000))
    bomb.save(folder / "bomb.png")
    Image.new("RGB", (1, 60_000)).save(folder / "thin.png")
    (folder / "postscript.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n")
    (folder / "loop").symlink_to(folder)
    (folder / "gone.png").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.png")
    for name in ('a,b "c".png', "line\nbreak.png", "<img src=x onerror=alert(1)>.png", "üñí 图.png", "--run.png"):
        (folder / name).write_bytes(whole)
    with open(os.fsencode(folder) + b"/\xff\xfe.png", "wb") as file:
        file.write(whole)
    return folder


ODD = 6
BAD = {
    "truncated0.png",
    "truncated1.png",
    "truncated2.png",
    "empty.jpg",
    "notes.txt",
    "bomb.png",
    "thin.png",
    "postscript.jpg",
    "loop",
    "gone.png",
    "pipe.png",
}


def test_all_good_images_of_a_bad_folder_are_judged_and_the_others_listed(root, run, tmp_path, capsys):
    folder, out = bad_folder(tmp_path / "bad", 1000), tmp_path / "out.csv"
    judged("--run", run, folder, "--out", out, "--batch-size", "64")
    rows = read(out)
    names = {os.path.relpath(row["path"], folder) for row in rows}
    everything = {os.fsdecode(name) for name in os.listdir(os.fsencode(folder))}
    assert names == everything - BAD and len(rows) == 1000 + ODD
    reasons = {os.path.relpath(row["path"], folder): row["reason"] for row in read(tmp_path / "out.csv.unreadable.csv")}
    assert set(reasons) == BAD
    assert "60000 pixels" in reasons["thin.png"] and "cannot identify" in reasons["postscript.jpg"]
    assert "truncated" in reasons["truncated1.png"] and "DecompressionBomb" in reasons["bomb.png"]
    assert f"{len(BAD)} could not be judged" in capsys.readouterr().err
    judged("--run", run, folder, "--out", out, "--overwrite", "--strict", "--batch-size", "64", status=1)


def test_permissions_are_a_reason(root, run, tmp_path, monkeypatch):
    shutil.copytree(root / "data" / "near", tmp_path / "in")
    real = Path.open

    def opened(path, *args, **kwargs):
        if path.name == "2.png":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)  # the superuser may read everything
    judged("--run", run, tmp_path / "in", "--out", tmp_path / "out.csv")
    assert len(read(tmp_path / "out.csv")) == 8
    (row,) = read(tmp_path / "out.csv.unreadable.csv")
    assert row["path"].endswith("2.png") and row["reason"] == "Permission denied"


def test_features_that_are_not_finite_are_a_reason(root, run, tmp_path, monkeypatch):
    real = OpenClipBackbone.encode_image

    def broken(self, images):
        features = real(self, images)
        features[1] = float("nan")
        return features

    monkeypatch.setattr(OpenClipBackbone, "encode_image", broken)
    judged("--run", run, root / "data" / "near", "--out", tmp_path / "out.csv", "--batch-size", "9")
    assert len(read(tmp_path / "out.csv")) == 8
    (row,) = read(tmp_path / "out.csv.unreadable.csv")
    assert row["path"].endswith("1.png") and "NaN or Inf" in row["reason"]


def test_many_failures_are_counted_in_the_terminal(root, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(verdicts_module, "SHOWN", 2)
    for number in range(5):
        (tmp_path / f"{number}.png").touch()
    judged("--run", run, tmp_path)
    said = capsys.readouterr().err
    assert said.count("not judged: ") == 3 and "3 more" in said and "0 images judged" in said
