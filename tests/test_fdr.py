"""detect.py --fdr decides over all images together: what is flagged, by which processes, what is said of it, and what is refused."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from fractions import Fraction

import forked
import pyarrow.parquet as pq
import pytest
from judged_run import judged, read
from tiny_clip import PROJECT

import detect
from clip_ood import load
from clip_ood.calibration import Calibration, Choice
from clip_ood.detect import saved, saved_encoder
from clip_ood.experiments import detect as conducting
from clip_ood.files.unreadable import TooManyUnreadable
from clip_ood.lightning_modules.prediction import PredictionModule

pytestmark = pytest.mark.slow

FDR = "0.2"


@pytest.fixture
def inputs(root):
    return [str(root / "data" / "far"), str(root / "data" / "near"), str(root / "data" / "id" / "dog")]


def flagged_by_loop(p_values, n):
    """Benjamini and Hochberg's rule in whole fractions."""
    p_values = [Fraction(round(float(p) * (n + 1)), n + 1) for p in p_values]
    m = len(p_values)
    limits = [Fraction(FDR) * k / m for k in range(1, m + 1)]
    limit = max((each for k, each in enumerate(limits, 1) if sum(p <= each for p in p_values) >= k), default=0)
    return [p <= limit for p in p_values]


def assert_decided(rows, run):
    for detector in ("knn", "msp"):
        ours = [row for row in rows if row["detector"] == detector]
        n = len(saved.SavedDetector(run).calibration(detector))
        expected = flagged_by_loop([row["p_value"] for row in ours], n)
        assert [str(row["is_ood"]).lower() == "true" for row in ours] == expected
        assert any(expected) == (detector == "knn") and not all(expected)


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_each_detector_is_decided_over_all_images(root, run, inputs, tmp_path, ending, monkeypatch, capsys):
    monkeypatch.setattr(conducting, "BATCHES", 2)  # several parts
    out, odd = tmp_path / f"out{ending}", tmp_path / "odd"
    (tmp_path / "bad.png").touch()
    options = ["--detector", "knn,msp", "--fdr", FDR, "--copy-ood", odd, "--fail-on-ood"]
    judged("--run", run, *inputs, tmp_path / "bad.png", *options, "--out", out, status=3)
    rows = {
        ".csv": lambda: read(out),
        ".jsonl": lambda: [json.loads(line) for line in out.read_text().splitlines()],
        ".parquet": lambda: pq.read_table(out).to_pylist(),
    }[ending]()
    assert_decided(rows, run)
    flagged = [row for row in rows if str(row["is_ood"]).lower() == "true"]
    assert sum(path.is_file() for path in odd.rglob("*")) == len(flagged)
    said = capsys.readouterr().err
    assert f"{len(flagged)} of them OOD" in said and "knn at a false discovery rate of 20 % (calibrated on 20)" in said
    assert "at most 20 % are expected to be ID images, if ID images are drawn as those that calibrate it were" in said
    assert (
        "0 of them OOD (0.0 %): msp at a false discovery rate of 20 % (calibrated on 20);" in said
    )  # nothing promised
    assert not (tmp_path / f"out{ending}.parts").exists()


def test_what_is_printed_and_what_python_returns_is_what_is_written(run, inputs, tmp_path, capsys):
    judged("--run", run, *inputs, "--fdr", FDR, "--out", tmp_path / "out.csv")
    capsys.readouterr()
    judged("--run", run, *inputs, "--fdr", FDR)
    printed = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert printed == read(tmp_path / "out.csv")
    predictor = load(run, fdr=0.2)
    assert predictor.threshold is predictor.expected is predictor.accept is None
    predictions = predictor([row["path"] for row in printed])
    assert [str(each.is_ood).lower() for each in predictions] == [row["is_ood"] for row in printed]
    assert predictor([]) == [] and [each.is_ood for each in predictor(printed[0]["path"])] == [True]
    with pytest.raises(ValueError, match="give one of them"):
        load(run, accept=0.9, fdr=0.2)
    with pytest.raises(ValueError, match="fdr = 2 must lie between 0 and 1"):
        load(run, fdr=2)


def test_a_killed_call_goes_on_and_decides_over_all(run, inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(conducting, "BATCHES", 2)
    out, command = tmp_path / "out.csv", ["--run", run, *inputs, "--fdr", FDR]
    judged(*command, "--out", tmp_path / "whole.csv")
    real, seen = PredictionModule.predict_step, []

    def stops(module, batch, batch_idx):
        seen.append(batch.batch.part)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return real(module, batch, batch_idx)

    monkeypatch.setattr(PredictionModule, "predict_step", stops)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        detect.main([str(each) for each in (*command, "--out", out)])
    kept = (tmp_path / "out.csv.parts" / "part-000000.jsonl").read_text().splitlines()[1:]
    assert {json.loads(line)["is_ood"] for line in kept} == {None}  # a part decides nothing
    seen.clear()
    monkeypatch.setattr(PredictionModule, "predict_step", lambda *a: seen.append(a[1].batch.part) or real(*a))
    judged(*command, "--out", out)
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes() and seen[:2] == [1, 1]


def test_two_processes_decide_over_the_images_of_both(run, inputs, tmp_path):
    out = tmp_path / "two.csv"
    command = [sys.executable, "detect.py", "--run", run, *inputs, "--fdr", FDR, "--out", out]
    command += ["--detector", "knn,msp", "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    done = forked.run(command, cwd=PROJECT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no p-value is below 1/21") == 1  # not for each detector and process
    rows = read(out)
    assert len(rows) == 2 * sum(len(os.listdir(folder)) for folder in inputs)
    assert_decided(rows, run)


def test_too_few_calibration_images_are_told_before_any_is_judged(run, inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(saved_encoder, "create_backbone", None)  # no encoder is loaded
    images = sum(len(os.listdir(folder)) for folder in inputs)
    (tmp_path / "notes.md").touch()  # no image by its name
    with pytest.raises(TypeError):
        detect.main(["--run", str(run), *inputs, str(tmp_path), "--fdr", FDR])
    fewest = -(-images * 10 // 42)  # images / (0.2 · 21), rounded up
    assert (
        f"of {images} images none is flagged unless at least {fewest} are odd at the same time. To flag a single one takes "
        f"{images * 5 - 1} of them" in capsys.readouterr().err
    )
    with pytest.raises(TypeError):
        detect.main(["--run", str(run), f"{inputs[0]}/0.png", "--fdr", FDR])
    assert "no p-value" not in capsys.readouterr().err


def test_after_a_choice_the_rate_is_simulated(run, inputs, monkeypatch, capsys):
    real = saved.SavedDetector.calibration
    monkeypatch.setattr(
        saved.SavedDetector, "calibration", lambda *a: Calibration(real(*a).scores, Choice(12, 0.9, 100))
    )
    judged("--run", run, *inputs, "--fdr", FDR)
    said = capsys.readouterr().err
    assert "(simulated, not proven: the calibration images also chose among 12 candidates)" in said
    assert 20 < float(said.partition("at most about ")[2].partition(" %")[0]) < 60


def test_judging_stops_at_one_unreadable_image_too_many(run, inputs, tmp_path, monkeypatch):
    for number in range(7):
        (tmp_path / f"{number}.png").touch()
    real, seen = PredictionModule.predict_step, []
    monkeypatch.setattr(PredictionModule, "predict_step", lambda *a: seen.append(1) or real(*a))
    with pytest.raises(TooManyUnreadable):
        detect.main(["--run", str(run), str(tmp_path), *inputs, "--fdr", FDR, "--batch-size", "1", "--workers", "0"])
    assert len(seen) < 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{near}", "--fdr", "0.1", "--accept", "0.9"], "--accept sets a threshold .* give one of them"),
        (["{near}", "--fdr", "1"], "--fdr: 1 must lie between 0 and 1"),
        (["{near}", "--fdr", "0.04"], "false discovery rate of 4 % takes 24 ID images or more .* there are 20"),
        (["{near}", "-", "--fdr", "0.1"], r"standard input \(-\) may have no last one: write the paths to a file"),
        (["--fdr", "0.1", "--export", "m.onnx"], "--fdr decides over the images that are judged"),
    ],
)
def test_what_cannot_be_decided_is_said_before_any_work(root, run, arguments, message, monkeypatch):
    monkeypatch.setattr(saved_encoder, "create_backbone", None)  # no encoder is loaded
    with pytest.raises(ValueError, match=message):
        detect.main(["--run", str(run), *(each.format(near=root / "data" / "near") for each in arguments)])


def test_a_pipe_of_the_shell_is_refused(run, tmp_path):
    reading, writing = os.pipe()
    os.close(writing)  # a call that reads it comes to its end
    try:
        with pytest.raises(ValueError, match=f"/dev/fd/{reading} may have no last one"):
            detect.main(["--run", str(run), f"/dev/fd/{reading}", "--fdr", "0.1", "--out", str(tmp_path / "out.csv")])
    finally:
        os.close(reading)
