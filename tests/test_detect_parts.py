"""detect.py writes predictions in parts: it goes on after a kill, and several processes write what one does."""

from __future__ import annotations

import errno
import shutil
import sys
from pathlib import Path

import forked
import pytest
from judged_run import judged, read
from tiny_clip import PROJECT

import detect
from clip_ood.callbacks.prediction_writer import PredictionParts
from clip_ood.data import inputs
from clip_ood.data.readers.reader import NoImage
from clip_ood.detect.prepared import prepare
from clip_ood.experiments import detect as conducting
from clip_ood.files.pictures import UnreadableImage
from clip_ood.files.unreadable import Passing, TooManyUnreadable
from clip_ood.lightning_modules.prediction import PredictionModule

pytestmark = pytest.mark.slow


def test_a_killed_run_goes_on_with_what_is_missing(root, run, tmp_path, monkeypatch):
    monkeypatch.setattr(conducting, "BATCHES", 2)
    folder, out = root / "data" / "id", tmp_path / "out.csv"
    judged("--run", run, folder, "--out", out)
    whole, real, seen = out.read_bytes(), PredictionModule.predict_step, []

    def stops(module, batch, batch_idx):
        seen.append(batch.batch.part)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return real(module, batch, batch_idx)

    out.unlink()
    monkeypatch.setattr(PredictionModule, "predict_step", stops)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        detect.main(["--run", str(run), str(folder), "--out", str(out)])
    assert not out.exists() and seen == [0, 0, 1, 1]
    seen.clear()
    monkeypatch.setattr(PredictionModule, "predict_step", lambda *a: seen.append(a[1].batch.part) or real(*a))
    judged("--run", run, folder, "--out", out)
    assert out.read_bytes() == whole and seen[:2] == [1, 1]
    assert not (tmp_path / "out.csv.parts").exists()


def test_parts_of_other_inputs_or_settings_are_not_used(root, run, tmp_path):
    shutil.copytree(root / "data" / "near", tmp_path / "in")
    parts = PredictionParts(tmp_path / "out.csv.parts", "other key")
    parts.keep(0, [], [])
    parts.keep(7, [], [])  # of more images than there are
    judged("--run", run, tmp_path / "in", "--out", tmp_path / "out.csv")
    assert len(read(tmp_path / "out.csv")) == 9


def test_a_part_whose_files_changed_is_judged_anew(tmp_path):
    (tmp_path / "a.png").write_bytes(b"1")
    sources = list(inputs.sources([str(tmp_path / "a.png")]))
    parts = PredictionParts(tmp_path / "parts", "key")
    parts.keep(0, sources, [])
    assert parts.is_whole(0, sources) and list(parts.read(1)) == []
    (tmp_path / "a.png").write_bytes(b"22")
    assert not parts.is_whole(0, sources)
    with pytest.raises(ValueError, match="inputs changed while they were judged"):
        list(parts.read(1))


def test_a_part_of_an_address_with_another_query_is_judged_anew(tmp_path):
    one, other = ([inputs._file(f"https://example.org/image?id={number}", "image")] for number in (1, 2))
    parts = PredictionParts(tmp_path / "parts", "key")
    parts.keep(0, one, [])
    assert parts.is_whole(0, one) and not parts.is_whole(0, other)
    assert "id=1" not in parts.path(0).read_text()


@pytest.mark.parametrize(
    "error, passes",
    [
        (OSError(errno.EIO, "the server answers 503"), True),
        (PermissionError(errno.EACCES, "the server refuses it"), True),
        (MemoryError(), True),
        (NoImage(errno.EIO, "it has changed since it was listed"), False),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), False),
        (UnreadableImage("cannot identify image file"), False),
    ],
)
def test_an_error_of_a_server_or_the_machine_passes(error, passes):
    def read():
        raise error

    assert isinstance(prepare(read, lambda picture: picture), Passing) == passes


def test_a_part_with_errors_that_pass_is_judged_anew_by_the_next_call(root, run, tmp_path, monkeypatch):
    monkeypatch.setattr(conducting, "BATCHES", 1)
    folder, out, real = root / "data" / "id", tmp_path / "out.csv", inputs.Source.read

    def busy(source):
        if Path(source.path).stem in ("1", "3", "5"):
            raise OSError(errno.EIO, "the server answers 503")
        return real(source)

    monkeypatch.setattr(inputs.Source, "read", busy)
    with pytest.raises(TooManyUnreadable):
        detect.main(["--run", str(run), str(folder), "--out", str(out)])
    assert (tmp_path / "out.csv.parts" / "part-000000.jsonl").is_file()
    monkeypatch.setattr(inputs.Source, "read", real)
    judged("--run", run, folder, "--out", out)
    assert len(read(out)) == 46 and not (tmp_path / "out.csv.unreadable.csv").exists()


def test_a_part_with_errors_that_pass_is_whole_for_the_call_that_has_written_it(tmp_path):
    key = (tmp_path / "parts", "key")
    first, second = PredictionParts(*key), PredictionParts(*key)
    first.keep(0, [], [b'{"path": "a.png", "error": "busy", "is_image": true, "passes": true}\n'])
    assert first.is_whole(0, []) and not second.is_whole(0, []) and second.unfit == 0


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
    done = forked.run(command, cwd=PROJECT, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = read(tmp_path / "one.csv"), read(tmp_path / "two.csv")
    for ours, theirs in zip(one, two, strict=True):
        for name in ("path", "predicted_class", "detector"):
            assert ours[name] == theirs[name]
        for name in ("score", "confidence"):  # fewer threads sum in another order, and flags of calibration images tip
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-5)
    assert (tmp_path / "two.csv.unreadable.csv").read_bytes() == (tmp_path / "one.csv.unreadable.csv").read_bytes()
