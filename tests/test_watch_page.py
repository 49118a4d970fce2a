"""clip-ood watch: the same watch over predictions that lie in files, as a page."""

from __future__ import annotations

import csv
import re

import judged_run
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from judged_run import judged
from safetensors.torch import load_file

from clip_ood.calibration import Calibration
from clip_ood.detect.predicted_scores import predicted_scores
from clip_ood.detect.saved import SavedDetector
from clip_ood.detect.watch_file import watching
from clip_ood.errors import ConfigError, UserError
from clip_ood.experiments.commands import watch as command
from clip_ood.report.watch_page import write_watch_page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(root):
    return judged_run.make(root, "watched", "zero_shot", detectors=["mcm", "knn"])


@pytest.fixture(scope="module")
def predictions(root, run):
    """Predictions in each format, with some copies of the run's images, and the file of their watch."""
    paths = [*sorted((root / "data/near").glob("*.png")), *sorted((root / "data/id").rglob("*.png"))]
    for suffix in ("csv", "jsonl", "parquet"):
        options = ["--detector=all", "--out", root / f"p.{suffix}", "--watch", root / f"{suffix}.safetensors"]
        judged("--run", run, *paths, *options)
    return root


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_the_scores_are_those_that_were_watched(predictions, run, suffix):
    saved = SavedDetector(run)
    found = predicted_scores(
        predictions / f"p.{suffix}", "mcm", saved.calibration("mcm"), saved.manifest["class_names"]
    )
    assert np.array_equal(found, load_file(predictions / f"{suffix}.safetensors")["scores"])
    assert 9 < len(found) < 55


def test_the_command_says_what_the_watch_says(predictions, run, tmp_path, capsys):
    out = tmp_path / "watch.html"
    command.main(["--run", str(run), str(predictions / "p.csv"), "--out", str(out)])
    with watching(predictions / "csv.safetensors", SavedDetector(run), "mcm") as watch:
        seen, highest_at = watch.martingale.seen, watch.martingale.highest_at
    assert f"{seen} images by mcm: no alarm (delta = 0.01)" in capsys.readouterr().out
    page = out.read_text()
    assert "No alarm" in page and f"{seen} images · mcm · calibrated on 20" in page
    assert f"after image {highest_at}" in page
    with pytest.raises(ConfigError, match="is there already"):
        command.main(["--run", str(run), str(predictions / "p.csv"), "--out", str(out)])
    command.main(["--run", str(run), str(predictions / "p.jsonl"), "--out", str(out), "--overwrite", "--detector=knn"])
    assert "· knn ·" in out.read_text()


def test_a_change_is_shown_with_the_file_in_which_it_came(tmp_path):
    generator = np.random.default_rng(0)
    files = [("a<b.csv", generator.normal(size=1000)), ("c.csv", generator.normal(size=500) - 2)]
    calibration = Calibration(torch.from_numpy(generator.normal(size=200)))
    found = write_watch_page(tmp_path / "w.html", files, calibration, "knn", 0.01)
    page = (tmp_path / "w.html").read_text()
    assert 1000 < found.alarm < 1100 and f"Alarm after image {found.alarm:,}" in page
    rows = re.findall(r'<tr><th class="name" scope="row" title="([^"]*)">.*?</tr>', page)
    assert rows == ["a&lt;b.csv", "c.csv"] and page.count("<svg") == 2


def test_files_that_are_no_predictions_are_refused_by_name(predictions, run, tmp_path):
    def told(name, content=None):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError) as ended:
            command.main(["--run", str(run), str(path), "--out", str(tmp_path / "w.html")])
        assert name in str(ended.value) and not (tmp_path / "w.html").exists()
        return str(ended.value)

    header = (predictions / "p.csv").read_bytes().splitlines(keepends=True)[0]
    assert "There is no file" in told("none.csv")
    assert "must end with" in told("p.txt", b"")
    assert "has no image that mcm has scored" in told("empty.csv", header)
    assert "has no column 'score'" in told("other.csv", b"path,detector,copy_of\r\na,mcm,\r\n")
    assert "damaged" in told("words.csv", header + b"a.png,true,high,0.1,,,mcm,\r\n")
    assert "is NaN" in told("nan.csv", header + b"a.png,true,nan,0.1,,,mcm,\r\n")
    assert "it has vim" in told("vim.csv", header + b"a.png,true,0.5,0.1,,,vim,\r\n")
    assert "damaged" in told("cut.csv", header + b"a.png,true,high,0.1\r\n")
    assert "damaged" in told("cut.jsonl", b'{"score": 1, "detector": "mcm", "cop')
    assert "damaged" in told("list.jsonl", b"[1]\n")
    assert "damaged" in told("cut.parquet", (predictions / "p.parquet").read_bytes()[:-10])
    pq.write_table(pa.table({"score": [1.0]}), tmp_path / "few.parquet")
    assert "has no column 'detector'" in told("few.parquet")


def test_predictions_of_another_run_are_refused_and_those_by_classes_taken(root, predictions, run, tmp_path):
    judged("--run", run, root / "data/near", "--out", tmp_path / "c.csv", "--per-class", "--accept=0.5")
    plain, by_class = (list(csv.DictReader(each.open())) for each in (predictions / "p.csv", tmp_path / "c.csv"))
    assert {row["p_value"] for row in by_class} - {row["p_value"] for row in plain}
    files = [str(tmp_path / "c.csv"), str(predictions / "p.csv")]
    command.main(["--run", str(run), *files, "--out", str(tmp_path / "w.html")])
    other = judged_run.make(root, "other", "zero_shot", detectors=["mcm"], seed=5)
    for file in files:
        with pytest.raises(UserError, match=f"{re.escape(file)} is of another mcm than that of --run"):
            command.main(["--run", str(other), file, "--out", str(tmp_path / "o.html")])
    assert not (tmp_path / "o.html").exists()


def test_a_file_that_is_named_twice_is_refused(predictions, run, tmp_path):
    twice = [str(predictions / "p.csv")] * 2
    for options, told in (([*twice], "named twice"), ([twice[0], "--delta=1"], "between 0 and 1")):
        with pytest.raises(ConfigError, match=told):
            command.main(["--run", str(run), *options, "--out", str(tmp_path / "w.html")])
    with pytest.raises(ConfigError, match="must end with"):
        command.main(["--run", str(run), twice[0], "--out", str(tmp_path / "w.csv")])


def test_cross_fitted_scores_are_refused_here_too(root, predictions, tmp_path):
    folds = judged_run.cross_fitted(root, "folds", detectors=["mcm", "mahalanobis"])
    with pytest.raises(UserError, match="recalibrate"):
        options = ["--detector=mahalanobis", "--out", str(tmp_path / "w.html")]
        command.main(["--run", str(folds), str(predictions / "p.csv"), *options])


def test_names_in_csv_come_back(tmp_path):
    """A detector whose name a spreadsheet would take for a formula is written with a quotation mark before it."""
    with (tmp_path / "p.csv").open("w", newline="") as file:
        names = ["path", "score", "p_value", "predicted_class", "detector", "copy_of"]
        csv.writer(file).writerows([names, ["a.png", 0.1, 0.5, "", "'-x", ""]])
    assert predicted_scores(tmp_path / "p.csv", "-x", Calibration(torch.ones(1)), ()).tolist() == [0.1]
