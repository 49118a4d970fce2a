"""Several detectors of a run judge images in one pass."""

from __future__ import annotations

import csv
import io
import json

import judged_run
import pyarrow.parquet as pq
import pytest
from judged_run import judged

import detect
from clip_ood import load
from clip_ood.detect.saved import SavedDetector


def rows_of(out):
    read = {
        ".csv": lambda: list(csv.DictReader(out.open())),
        ".jsonl": lambda: [json.loads(line) for line in out.read_text().splitlines()],
        ".parquet": lambda: pq.read_table(out).to_pylist(),
    }
    return read[out.suffix]()


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_each_gives_the_predictions_that_it_gives_alone_and_images_are_encoded_once(
    root, run, tmp_path, ending, monkeypatch, capsys
):
    from clip_ood.backbones.open_clip_backbone import OpenClipBackbone

    seen, real = [], OpenClipBackbone.encode_image
    monkeypatch.setattr(OpenClipBackbone, "encode_image", lambda *a: seen.append(len(a[1])) or real(*a))
    folder, out = root / "data" / "near", tmp_path / f"out{ending}"
    (tmp_path / "bad.png").touch()
    judged("--run", run, folder, tmp_path / "bad.png", "--detector", "msp, knn,msp", "--accept", "0.6", "--out", out)
    assert sum(seen) == 2 + 10  # two made-up ones at first, nine images, zeros for the one that cannot be read
    said, rows = capsys.readouterr().err, rows_of(out)
    assert "9 images judged" in said and "msp below" in said and "knn below" in said
    assert [row["detector"] for row in rows] == ["msp", "knn"] * 9
    for name in ("msp", "knn"):
        alone = load(run, name, accept=0.6)(sorted(folder.iterdir()))
        ours = [row for row in rows if row["detector"] == name]
        for row, prediction in zip(ours, alone, strict=True):
            assert row["path"] == prediction.path and float(row["score"]) == pytest.approx(prediction.score, rel=1e-6)
            assert str(row["is_ood"]).lower() == str(prediction.is_ood).lower()
            assert float(row["p_value"]) == pytest.approx(prediction.p_value)
        assert f"{sum(prediction.is_ood for prediction in alone)} of them OOD" in said.partition(f"{name} below")[0]
    assert len((tmp_path / f"out{ending}.unreadable.csv").read_text().splitlines()) == 2


def test_all_are_asked_in_the_runs_order_and_the_bank_is_searched_once_for_them(root, run, monkeypatch, capsys):
    from clip_ood.detectors.bank import Bank

    searches, real = [], Bank._search
    monkeypatch.setattr(Bank, "_search", lambda *a: searches.append(1) or real(*a))
    judged("--run", run, root / "data" / "near" / "0.png", "--detector", "all")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["detector"] for row in rows] == SavedDetector(run).columns and len(rows) > 10
    assert len(searches) == 1 + 1  # the made-up pictures
    assert {"knn", "nnguide"} <= {row["detector"] for row in rows}


def test_the_first_says_what_is_copied_and_the_status(root, run, tmp_path):
    image = sorted((root / "data" / "id").rglob("*.png"))
    flags = {name: {v.path for v in load(run, name, accept=0.5)(image) if v.is_ood} for name in ("knn", "msp")}
    assert flags["knn"] != flags["msp"]
    for first, other in (("knn", "msp"), ("msp", "knn")):
        options = ["--accept", "0.5", "--detector", f"{first},{other}", "--copy-ood", tmp_path / first]
        judged("--run", run, root / "data" / "id", *options, "--out", tmp_path / f"{first}.csv")
        assert sum(path.is_file() for path in (tmp_path / first).rglob("*")) == len(flags[first])
    only_msp = next(iter(flags["msp"] - flags["knn"]))
    options = ["--run", run, only_msp, "--accept", "0.5", "--fail-on-ood", "--detector"]
    judged(*options, "knn,msp")
    judged(*options, "msp,knn", status=3)


def test_a_run_goes_on_only_with_the_same_detectors(root, run, tmp_path, monkeypatch):
    from clip_ood.experiments import detect as conducting
    from clip_ood.experiments import predictions

    def killed(*_):
        raise KeyboardInterrupt

    out, folder = tmp_path / "out.csv", root / "data" / "near"
    with monkeypatch.context() as patch:
        patch.setattr(conducting, "written", killed)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            detect.main(["--run", str(run), str(folder), "--out", str(out), "--detector", "knn"])
    assert (tmp_path / "out.csv.parts").is_dir() and predictions
    judged("--run", run, folder, "--out", out, "--detector", "knn,msp")
    assert [row["detector"] for row in rows_of(out)] == ["knn", "msp"] * 9


def test_a_name_that_is_none_of_several_is_named(run, root):
    for asked in ("knn,mpp", "knn,", "all,knn", ""):
        with pytest.raises(ValueError, match=r"has no detector '(mpp||all)'"):
            detect.main(["--run", str(run), str(root / "data" / "near"), "--detector", asked])


def test_a_column_of_the_name_all_or_with_a_comma_is_that_column(root):
    specs = [{"name": "knn", "as": "all"}, {"name": "msp", "as": "a,b"}, "energy"]
    saved = SavedDetector(judged_run.make(root, "named", detectors=specs))
    assert saved.chosen("all") == ["all"] and saved.chosen("a,b") == ["a,b"] and saved.chosen(None) == ["all"]
    assert saved.chosen(["energy", "a,b"]) == ["energy", "a,b"]


def test_python_gives_a_prediction_each_image_by_image(root, run):
    predictions = load(run, "knn,msp")([root / "data" / "near" / "1.png", root / "data" / "near" / "0.png"])
    assert [(prediction.path[-5:], prediction.detector) for prediction in predictions] == [
        ("1.png", "knn"),
        ("1.png", "msp"),
        ("0.png", "knn"),
        ("0.png", "msp"),
    ]
