"""detect.py sets flagged images aside as copies or links."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest
from judged_run import judged, read
from PIL import Image

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("link", [False, True])
def test_flagged_images_are_set_aside_once(root, run, tmp_path, link):
    near = tmp_path / "near"
    shutil.copytree(root / "data" / "near", near / "deep")
    (tmp_path / "more").mkdir()
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "more" / "same.png")
    Image.new("RGB", (9, 9), "red").save(tmp_path / "same.png")
    odd = tmp_path / "odd"
    for _ in range(2):  # a second time adds nothing
        judged(
            "--run", run, near, tmp_path / "more" / "same.png", tmp_path / "same.png", "--accept", "0.01",
            "--out", tmp_path / "out.csv", "--overwrite", "--move-ood", odd, *(["--link"] if link else []),
        )  # fmt: skip
        flagged = [row["path"] for row in read(tmp_path / "out.csv") if row["is_ood"] == "true"]
        assert len(flagged) >= 3 and "same.png" in flagged[-1]
        found = sorted(path for path in odd.rglob("*") if not path.is_dir())
        assert len(found) == len(flagged) and all(path.is_symlink() == link for path in found)
        contents = sorted(path.read_bytes() for path in found)
        assert contents == sorted(Path(path).read_bytes() for path in flagged)
    assert (odd / "same-2.png").exists() and (near / "deep").is_dir()


@pytest.mark.parametrize("option", ["--copy-ood", "--move-ood"])
def test_that_flagged_images_are_copied_is_said(root, run, tmp_path, option, capsys):
    shutil.copytree(root / "data" / "near", tmp_path / "in")
    before = sorted((tmp_path / "in").iterdir())
    judged("--run", run, tmp_path / "in", "--accept", "0.01", option, tmp_path / "odd")
    assert f"OOD images: copied to {tmp_path / 'odd'}; they stay where they are" in capsys.readouterr().err
    assert sorted((tmp_path / "in").iterdir()) == before and any((tmp_path / "odd").iterdir())


def test_what_cannot_be_set_aside_is_told_and_the_verdicts_stand(root, run, tmp_path, capsys):
    (tmp_path / "new").mkdir()
    shutil.copytree(root / "data" / "near", tmp_path / "new" / "inside")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "inside").write_text("a file where the folder should be")
    arguments = ["--run", run, tmp_path / "new", "--accept", "0.05", "--move-ood", tmp_path / "odd"]
    judged(*arguments, "--out", tmp_path / "out.csv")
    assert len(read(tmp_path / "out.csv")) == 9
    assert "judged, but not set aside" in capsys.readouterr().err
    judged(*arguments, "--strict", status=1)


def test_a_member_of_a_shard_stays_below_the_folder(root, run, tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(root / "data" / "near" / "0.png", "../../outside.png")
    judged("--run", run, tmp_path / "x.tar", "--accept", "0.01", "--move-ood", tmp_path / "a" / "odd")
    assert [p.relative_to(tmp_path / "a").as_posix() for p in tmp_path.rglob("outside.png")] in (
        [],
        ["odd/x.tar/outside.png"],
    )
