"""detect.py from the command line: formats, order, damaged inputs, going on after a kill, several processes, statuses."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import judged_run
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_clip import PROJECT

import detect
from clip_ood import load
from clip_ood.callbacks.verdict_writer import VerdictParts
from clip_ood.data import inputs
from clip_ood.experiments import verdicts as verdicts_module

pytestmark = pytest.mark.slow

HEADER = ["path", "is_ood", "score", "p_value", "predicted_class", "confidence", "detector"]


@pytest.fixture(scope="module")
def run(root):
    return judged_run.make(root, "probe")


def judged(*arguments, status=0):
    """Runs detect.py; it ends with `status`."""
    with pytest.raises(SystemExit) as ended:
        detect.main([str(each) for each in arguments])
    assert (ended.value.code or 0) == status


def read(path: Path) -> list[dict]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_every_format_holds_the_same_verdicts_in_the_order_of_the_inputs(root, run, tmp_path, ending, capsys):
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
    for row, verdict in zip(rows, expected, strict=True):
        assert (row["path"], row["predicted_class"], row["detector"]) == (verdict.path, verdict.predicted_class, "knn")
        assert float(row["score"]) == pytest.approx(verdict.score, rel=1e-6)
        assert float(row["p_value"]) == verdict.p_value
        assert row["is_ood"] == (str(verdict.is_ood).lower() if ending == "csv" else verdict.is_ood)
    said = capsys.readouterr()
    assert said.out == "" and f"{len(files)} images judged" in said.err and "calibrated on" in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name]


def test_verdicts_are_printed_without_a_file(root, run, capsys):
    judged("--run", run, root / "data" / "near", "--detector", "msp", "--accept", "0.5")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 9 and {row["detector"] for row in rows} == {"msp"}
    judged("--run", run, root / "data" / "near", "--format", "jsonl")
    assert [json.loads(line)["path"] for line in capsys.readouterr().out.splitlines()] == [row["path"] for row in rows]


def test_standard_input_is_judged_as_it_comes(root, run):
    command = [sys.executable, "detect.py", "--run", str(run), "-", "--batch-size", "1", "--format", "jsonl"]
    with subprocess.Popen(
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
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdin.write(f"{root}/data/near/1.png\n" * 2)
        process.stdin.flush()
        assert process.stdout.readline().startswith("path,") and "near/1.png" in process.stdout.readline()
        process.terminate()
        assert process.wait(timeout=30) == 143


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


def test_statuses_say_what_was_found(root, run, tmp_path):
    near = root / "data" / "near"
    judged("--run", run, near, "--accept", "0.05", "--fail-on-ood", status=3)
    judged("--run", run, near, "--accept", "0.05")
    (tmp_path / "x.png").touch()
    judged("--run", run, near, tmp_path / "x.png", "--accept", "0.05", "--fail-on-ood", "--strict", status=1)
    judged("--run", run, root / "data" / "id" / "cat" / "0.png", "--fail-on-ood")


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
    import tarfile

    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(root / "data" / "near" / "0.png", "../../outside.png")
    judged("--run", run, tmp_path / "x.tar", "--accept", "0.01", "--move-ood", tmp_path / "a" / "odd")
    assert [p.relative_to(tmp_path / "a").as_posix() for p in tmp_path.rglob("outside.png")] in (
        [],
        ["odd/x.tar/outside.png"],
    )


def test_a_killed_run_goes_on_with_what_is_missing(root, run, tmp_path, monkeypatch):
    from clip_ood.experiments import detect as conducting
    from clip_ood.lightning_modules.judging import Judging

    monkeypatch.setattr(conducting, "BATCHES", 2)
    folder, out = root / "data" / "id", tmp_path / "out.csv"
    judged("--run", run, folder, "--out", out)
    whole, real, seen = out.read_bytes(), Judging.predict_step, []

    def stops(module, batch, batch_idx):
        seen.append(batch.batch.part)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return real(module, batch, batch_idx)

    out.unlink()
    monkeypatch.setattr(Judging, "predict_step", stops)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        detect.main(["--run", str(run), str(folder), "--out", str(out)])
    assert not out.exists() and seen == [0, 0, 1, 1]
    seen.clear()
    monkeypatch.setattr(Judging, "predict_step", lambda *a: seen.append(a[1].batch.part) or real(*a))
    judged("--run", run, folder, "--out", out)
    assert out.read_bytes() == whole and seen[:2] == [1, 1]
    assert not (tmp_path / "out.csv.parts").exists()


def test_parts_of_other_inputs_or_settings_are_not_used(root, run, tmp_path):
    shutil.copytree(root / "data" / "near", tmp_path / "in")
    parts = VerdictParts(tmp_path / "out.csv.parts", "other key")
    parts.keep(0, [], [])
    parts.keep(7, [], [])  # of more images than there are
    judged("--run", run, tmp_path / "in", "--out", tmp_path / "out.csv")
    assert len(read(tmp_path / "out.csv")) == 9


def test_a_part_whose_files_changed_is_judged_anew(tmp_path):
    (tmp_path / "a.png").write_bytes(b"1")
    sources = list(inputs.sources([str(tmp_path / "a.png")]))
    parts = VerdictParts(tmp_path / "parts", "key")
    parts.keep(0, sources, [])
    assert parts.is_whole(0, sources) and list(parts.read(1)) == []
    (tmp_path / "a.png").write_bytes(b"22")
    assert not parts.is_whole(0, sources)
    with pytest.raises(ValueError, match="inputs changed while they were judged"):
        list(parts.read(1))


def test_a_process_inside_another_launcher_writes_too(root, run, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")  # of somebody else's job: one device here
    monkeypatch.setenv("SLURM_PROCID", "1")
    judged("--run", run, root / "data" / "near", "--out", tmp_path / "out.csv", "--trainer.accelerator=cpu")
    assert len(read(tmp_path / "out.csv")) == 9


def test_two_processes_write_what_one_does(root, run, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    inputs = [str(root / "data" / "id"), str(tmp_path / "bad.png"), str(root / "data" / "near")]
    judged("--run", run, *inputs, "--out", tmp_path / "one.csv")
    command = [
        sys.executable,
        "detect.py",
        "--run",
        run,
        *inputs,
        "--out",
        tmp_path / "two.csv",
        "--trainer.accelerator=cpu",
    ]
    command += ["--trainer.devices=2", "--trainer.strategy=ddp"]
    done = subprocess.run([str(each) for each in command], cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = read(tmp_path / "one.csv"), read(tmp_path / "two.csv")
    for ours, theirs in zip(one, two, strict=True):
        for name in ("path", "predicted_class", "detector"):
            assert ours[name] == theirs[name]
        for name in ("score", "confidence"):  # fewer threads sum in another order, and flags of calibration images tip
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-5)
    assert (tmp_path / "two.csv.unreadable.csv").read_bytes() == (tmp_path / "one.csv.unreadable.csv").read_bytes()


def test_features_that_are_not_finite_are_a_reason(root, run, tmp_path, monkeypatch):
    from clip_ood.backbones.open_clip_backbone import OpenClipBackbone

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Judge what"),
        (["nowhere/"], "no file or folder nowhere/"),
        (["{near}", "--accept", "1.5"], "--accept: 1.5 must lie between 0 and 1"),
        (["{near}", "--accept", "0.99"], "takes 99 ID val images"),
        (["{near}", "--detector", "knm"], "no detector 'knm'"),
        (["{near}", "--out", "x.xlsx"], "must end with .csv or .jsonl or .parquet"),
        (["{near}", "--out", "nowhere/x.csv"], "there is no folder nowhere"),
        (["{near}", "--out", "{there}"], "is there already"),
        (["{near}", "--link"], "--link goes with --copy-ood"),
        (["{near}", "--move-ood", "{near}/odd"], "would be judged the next time"),
        (["{near}", "--export", "m.onnx"], "judges nothing"),
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
    from clip_ood.judging import saved

    monkeypatch.setattr(saved, "create_backbone", None)  # no encoder is loaded
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


@pytest.mark.parametrize("option", ["--copy-ood", "--move-ood"])
def test_that_flagged_images_are_copied_is_said(root, run, tmp_path, option, capsys):
    shutil.copytree(root / "data" / "near", tmp_path / "in")
    before = sorted((tmp_path / "in").iterdir())
    judged("--run", run, tmp_path / "in", "--accept", "0.01", option, tmp_path / "odd")
    assert f"OOD images: copied to {tmp_path / 'odd'}; they stay where they are" in capsys.readouterr().err
    assert sorted((tmp_path / "in").iterdir()) == before and any((tmp_path / "odd").iterdir())


def test_a_second_call_is_told_what_it_can_do(root, run, tmp_path):
    out = tmp_path / "v.csv"
    options = ["--run", run, root / "data" / "near", "--out", out]
    judged(*options)
    (tmp_path / "v-2.csv").touch()
    with pytest.raises(ValueError, match=r"Add --overwrite .* or name another file, as --out .*v-3\.csv"):
        detect.main([str(each) for each in options])
    judged(*options[:-1], tmp_path / "v-3.csv")
    assert (tmp_path / "v-3.csv").read_bytes() == out.read_bytes()
