"""How many images may be unreadable: the rule, and detect.py under it."""

from __future__ import annotations

import csv
import io
import json
import shutil

import pytest
from judged_run import judged

import detect
from clip_ood.files.unreadable import Tolerance, TooManyUnreadable, first_of


@pytest.fixture
def folder(root, tmp_path):
    """9 good images, 8 broken ones, and a note that is no image by its name."""
    shutil.copytree(root / "data" / "near", tmp_path / "in")
    for number in range(8):
        (tmp_path / "in" / f"!{number}.png").touch()
    (tmp_path / "in" / "notes.md").touch()
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("share", "total", "allowed"),
    [(0.01, 28, 5), (0.0, 10**6, 5), (0.01, 700, 7), (0.29, 100, 29), (0.1, 70, 7), (1.0, 12, 12), (0.5, 0, 5)],
)
def test_one_more_than_the_share_or_five_is_too_many(share, total, allowed):
    tolerance = Tolerance(share)
    found = [(f"{number}.png", "broken") for number in range(allowed + 1)]
    assert tolerance.allowed(total) == allowed
    tolerance.check("Image set x", total, found[:-1])
    with pytest.raises(TooManyUnreadable, match=rf"Image set x: {allowed + 1} of"):
        tolerance.check("Image set x", total, found)


def test_the_first_ten_reasons_are_shown():
    found = [(f"{number}.png", "broken") for number in range(14)]
    assert first_of(found[:10]) == [f"  {number}.png: broken" for number in range(10)]
    assert first_of(found) == [*first_of(found[:10]), "  and 4 more"]
    assert first_of([("a\x1b[2Jb\udcff.png", "no\nimage")]) == [r"  a\x1b[2Jb\udcff.png: no\nimage"]


def test_judging_stops_at_the_sixth_and_goes_on_where_more_are_allowed(
    root, run, folder, tmp_path, monkeypatch, capsys
):
    from clip_ood.experiments import detect as conducting
    from clip_ood.lightning_modules.prediction import PredictionModule

    monkeypatch.setattr(conducting, "BATCHES", 1)
    out, judgings, real = tmp_path / "out.csv", [], PredictionModule.predict_step
    monkeypatch.setattr(PredictionModule, "predict_step", lambda *a: judgings.append(a[2]) or real(*a))
    options = ["--run", run, root / "data" / "id", folder, "--out", out, "--batch-size", "4"]
    with pytest.raises(TooManyUnreadable, match=r"6 of 63|7 of 63|8 of 63") as raised:
        detect.main([str(each) for each in options])
    assert not out.exists() and "--max-unreadable = 0.01" in str(raised.value) and "!0.png" in str(raised.value)
    listed = list(csv.DictReader((tmp_path / "out.csv.unreadable.csv").open()))
    assert len(listed) >= 6 and str(tmp_path / "out.csv.unreadable.csv") in str(raised.value)
    first = len(judgings)
    assert first < 16  # of 63 images in fours
    judged(*options, "--max-unreadable", "0.2")  # the list of the first call is not in its way
    assert len(judgings) < 16 + 2  # whole parts were not judged again
    assert len(out.read_text().splitlines()) == 56
    assert len((tmp_path / "out.csv.unreadable.csv").read_text().splitlines()) == 10  # the note is listed, too


def test_printing_stops_as_well_and_five_may_be_broken(run, folder, capsys):
    with pytest.raises(TooManyUnreadable, match="of 17 images cannot be read, and 5 may be"):
        detect.main(["--run", str(run), str(folder), "--batch-size", "2"])
    for number in range(3):
        (folder / f"!{number}.png").unlink()
    judged("--run", run, folder)
    said = capsys.readouterr().err
    assert said.count("not judged:") == 6 and "9 images judged" in said


def test_standard_input_is_judged_to_its_end(run, folder, monkeypatch, capsys):
    paths = "\n".join(str(each) for each in sorted(folder.iterdir()))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(paths.encode()))))
    judged("--run", run, "-", "--format", "jsonl")
    said = capsys.readouterr()
    assert len([json.loads(line) for line in said.out.splitlines()]) == 9 and "9 could not be judged" in said.err


def test_what_is_no_image_by_its_name_is_listed_and_never_stops(run, folder, tmp_path):
    for path in folder.glob("!*.png"):
        path.rename(path.with_suffix(".md"))
    judged("--run", run, folder, "--out", tmp_path / "out.csv")
    assert len((tmp_path / "out.csv.unreadable.csv").read_text().splitlines()) == 10


def test_a_share_outside_0_and_1_is_refused(run, folder):
    with pytest.raises(ValueError, match="--max-unreadable: 2 must lie between 0 and 1"):
        detect.main(["--run", str(run), str(folder), "--max-unreadable", "2"])
