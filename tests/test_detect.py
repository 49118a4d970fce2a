"""detect.py from the command line: formats, order, standard input, statuses, and options that are refused."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys

import forked
import pyarrow.parquet as pq
import pytest
from judged_run import judged, read
from tiny_clip import PROJECT

import detect
from clip_ood import load
from clip_ood.detect import saved_encoder

pytestmark = pytest.mark.slow

HEADER = ["path", "is_ood", "score", "p_value", "predicted_class", "confidence", "detector", "copy_of"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_every_format_holds_the_same_predictions_in_the_order_of_the_inputs(root, run, tmp_path, ending, capsys):
    out = tmp_path / f"out.{ending}"
    inputs = [root / "data" / "far", root / "data" / "id" / "dog", root / "data" / "near" / "3.png"]
    judged("--run", run, *inputs, "--out", out)
    files = [*sorted(inputs[0].iterdir(), key=str), *sorted(inputs[1].iterdir(), key=str), inputs[2]]
    expected = load(run)(files)
    rows = {
        "csv": lambda: read(out),
        "jsonl": lambda: [json.loads(line) for line in out.read_text().splitlines()],
        "parquet": lambda: pq.read_table(out).to_pylist(),
    }[ending]()
    assert [list(row) for row in rows] == [HEADER] * len(files)
    for row, prediction in zip(rows, expected, strict=True):
        assert (row["path"], row["predicted_class"], row["detector"]) == (
            prediction.path,
            prediction.predicted_class,
            "knn",
        )
        assert float(row["score"]) == pytest.approx(prediction.score, rel=1e-6)
        assert float(row["p_value"]) == prediction.p_value
        assert row["is_ood"] == (str(prediction.is_ood).lower() if ending == "csv" else prediction.is_ood)
    said = capsys.readouterr()
    assert said.out == "" and f"{len(files)} images judged" in said.err and "calibrated on" in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name]


def test_predictions_are_printed_without_a_file(root, run, capsys):
    judged("--run", run, root / "data" / "near", "--detector", "msp", "--accept", "0.5")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 9 and {row["detector"] for row in rows} == {"msp"}
    judged("--run", run, root / "data" / "near", "--format", "jsonl")
    assert [json.loads(line)["path"] for line in capsys.readouterr().out.splitlines()] == [row["path"] for row in rows]


def test_standard_input_is_judged_as_it_comes(root, run):
    command = [sys.executable, "detect.py", "--run", str(run), "-", "--batch-size", "1", "--format", "jsonl"]
    with forked.Popen(
        command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        for name in ("near/1.png", "far/2.png"):
            process.stdin.write(f"{root}/data/{name}\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["path"] == f"{root}/data/{name}"
        process.stdin.close()
        assert process.wait() == 0


def test_a_run_that_is_told_to_end_ends(root, run):
    command = [sys.executable, "detect.py", "--run", str(run), "-", "--batch-size", "1"]
    with forked.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdin.write(f"{root}/data/near/1.png\n" * 2)
        process.stdin.flush()
        assert process.stdout.readline().startswith("path,") and "near/1.png" in process.stdout.readline()
        process.terminate()
        assert process.wait(timeout=30) == 143


def test_statuses_say_what_was_found(root, run, tmp_path):
    near = root / "data" / "near"
    judged("--run", run, near, "--accept", "0.05", "--fail-on-ood", status=3)
    judged("--run", run, near, "--accept", "0.05")
    (tmp_path / "x.png").touch()
    judged("--run", run, near, tmp_path / "x.png", "--accept", "0.05", "--fail-on-ood", "--strict", status=1)
    judged("--run", run, root / "data" / "id" / "cat" / "0.png", "--fail-on-ood")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Judge what"),
        (["nowhere/"], "no file or folder nowhere/"),
        (["{near}", ""], "A path is empty"),
        (["{near}", "-", "{near}/../near/"], "near is named twice, and its images would count twice"),
        (["-", "-"], "- is named twice"),
        (["{there}"], "is a table, and paths are read from text files"),
        (["{near}", "--accept", "1.5"], "--accept: 1.5 must lie between 0 and 1"),
        (["{near}", "--accept", "0.99"], "takes 99 ID images"),
        (["{near}", "--detector", "knm"], "no detector 'knm'"),
        (["{near}", "--out", "x.xlsx"], "must end with .csv or .jsonl or .parquet"),
        (["{near}", "--out", "nowhere/x.csv"], "there is no folder nowhere"),
        (["{near}", "--out", "{there}"], "is there already"),
        (["{near}", "--link"], "--link goes with --copy-ood"),
        (["{near}", "--move-ood", "{near}/odd"], "would be judged the next time"),
        (["{near}", "--export", "m.onnx"], "judges nothing"),
        (["--export", "m.onnx", "--nearest", "3"], "--nearest is about images that are judged, and without paths none"),
        (["--with-encoder", "--per-class"], "--per-class is about images that are judged"),
        (["--export", "m.h5"], "must end with .onnx or .pt2"),
        (["{near}", "--trainer.device=2"], "no key 'device'.* Did you mean devices"),
        (["{near}", "--color"], "no option --color"),
        (["{near}", "--trainer.limit_predict_batches=1"], "all images are judged"),
        (["{near}", "--with-encoder"], "adds weights to the run and judges nothing"),
        (
            ["{near}", "-", "--trainer.accelerator=cpu", "--trainer.devices=2"],
            "2 devices need inputs that each can read",
        ),
    ],
)
def test_what_cannot_be_done_is_said_before_any_work(root, run, tmp_path, arguments, message, monkeypatch):
    monkeypatch.setattr(saved_encoder, "create_backbone", None)  # no encoder is loaded
    there = tmp_path / "there.csv"
    there.touch()
    given = [each.format(near=root / "data" / "near", there=there) for each in arguments]
    with pytest.raises(ValueError, match=message):
        detect.main(["--run", str(run), *given])


def test_a_folder_that_is_no_run_is_named(tmp_path):
    for place, message in ((tmp_path / "nothing", "There is no run"), (tmp_path, "holds no detector")):
        with pytest.raises(ValueError, match=message):
            detect.main(["--run", str(place), str(tmp_path)])


def test_the_encoder_is_added_from_the_command_line(root, run, tmp_path, capsys):
    shutil.copytree(run / "detector", tmp_path / "copy")
    for said in ("holds its encoder now", "held its encoder already"):
        detect.main(["--run", str(tmp_path / "copy"), "--with-encoder"])
        assert said in capsys.readouterr().out


def test_help_answers_at_once():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "detect.py", "--help"], cwd=PROJECT, capture_output=True, text=True
    )
    assert "--move-ood" in done.stdout and " torch\n" not in done.stderr


def test_a_second_call_is_told_what_it_can_do(root, run, tmp_path):
    out = tmp_path / "v.csv"
    options = ["--run", run, root / "data" / "near", "--out", out]
    judged(*options)
    (tmp_path / "v-2.csv").touch()
    with pytest.raises(ValueError, match=r"Add --overwrite .* or name another file, as --out .*v-3\.csv"):
        detect.main([str(each) for each in options])
    judged(*options[:-1], tmp_path / "v-3.csv")
    assert (tmp_path / "v-3.csv").read_bytes() == out.read_bytes()
