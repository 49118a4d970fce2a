"""detect.py --watch: whether a stream has changed, the file between calls, and what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import judged_run
import numpy as np
import pytest
import tiny_clip
from judged_run import judged, read
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import detect
from clip_ood import load
from clip_ood.detect.save import add_encoder
from clip_ood.detect.saved import SavedDetector
from clip_ood.detect.watch_file import WatchError, watching
from clip_ood.errors import UserError
from clip_ood.experiments import watching as experiment
from clip_ood.process import locks
from clip_ood.process.locks import InUse
from clip_ood.stream.martingale import Martingale
from clip_ood.stream.online_p_values import OnlinePValues

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(root):
    return judged_run.make(root, "watched", "zero_shot", detectors=["mcm", "knn"])


@pytest.fixture(scope="module")
def saved(run):
    return SavedDetector(run)


def martingale_of(saved, scores, column="mcm", delta=0.01):
    found = Martingale(delta)
    found.take(*OnlinePValues(saved.calibration(column).scores.numpy()).take(np.array(scores)))
    return found


def watched(saved, path, scores=(), **options):
    """The martingale of a file once it has taken some more scores."""
    with watching(path, saved, "mcm", **options) as watch:
        watch.take(scores)
        watch.save()
        return watch.martingale


def state(martingale):
    return martingale.seen, martingale.log, martingale.highest, martingale.highest_at, martingale.alarm


def test_predictions_are_the_same_and_the_end_says_what_was_found(run, saved, images, tmp_path, capsys):
    file = tmp_path / "stream.safetensors"
    judged("--run", run, *images, "--out", tmp_path / "plain.csv")
    judged("--run", run, *images, "--out", tmp_path / "watched.csv", "--watch", file, "--batch-size", 5)
    rows = read(tmp_path / "watched.csv")
    assert [row["is_ood"] for row in rows] == [row["is_ood"] for row in read(tmp_path / "plain.csv")]
    told = capsys.readouterr().err
    expected = martingale_of(saved, [float(row["score"]) for row in rows])
    assert f"Watch {file}: {len(images)} images of the stream, {len(images)} of them new" in told
    assert f"the martingale is {experiment.power(expected.log)}, and its highest was" in told
    assert "no alarm, which takes 100 (delta = 0.01)" in told
    assert state(watched(saved, file)) == pytest.approx(state(expected))


@pytest.mark.parametrize("options", [["--out"], [], ["--fdr=0.2"]])
def test_calls_one_after_the_other_are_one_stream(run, saved, images, options, tmp_path):
    """Written or printed, and judged by several detectors: the first one is watched."""
    for name, parts in {"whole": [images], "parts": [images[:3], images[3:4], images[4:]]}.items():
        for number, part in enumerate(parts):
            out = [options[0], tmp_path / f"{name}{number}.csv"] if options == ["--out"] else options
            judged(
                "--run",
                run,
                *part,
                "--detector=all",
                "--batch-size=1",
                *out,
                "--watch",
                tmp_path / f"{name}.safetensors",
            )
    whole, parts = (tmp_path / f"{name}.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes() and len(load_file(whole)["scores"]) == len(images)
    assert state(watched(saved, whole)) == state(watched(saved, parts))


def test_copies_of_the_run_s_images_and_what_is_no_image_do_not_count(run, root, images, tmp_path, capsys):
    paths = [row["path"] for row in judged_run.scores(run, "id").values()]
    known = [
        each
        for each in sorted((root / "data/id").rglob("*.png"))
        if str(each.relative_to(root / "data/id")) not in paths
    ]
    (tmp_path / "broken.png").write_bytes(b"no image")
    out, file = tmp_path / "o.csv", tmp_path / "s.safetensors"
    judged("--run", run, *known, tmp_path / "broken.png", *images, "--out", out, "--watch", file)
    copies = sum(bool(row["copy_of"]) for row in read(out))
    new = len(read(out)) - copies
    assert copies and new and len(load_file(file)["scores"]) == new
    assert f"{new} of them new; {copies} copies of the run's own images left out" in capsys.readouterr().err


def odd(saved, count):
    """Scores that fall, all below those of the calibration."""
    return [float(saved.calibration("mcm").scores[0]) - 1 - number for number in range(count)]


def test_an_alarm_is_kept_told_and_an_exit_status(run, saved, images, tmp_path, capsys):
    file, quiet = tmp_path / "s.safetensors", tmp_path / "q.safetensors"
    at = watched(saved, file, odd(saved, 20), delta=0.2).alarm
    assert 1 < at < 20
    judged("--run", run, images[0], "--watch", file, "--fail-on-alarm", "--fail-on-ood", status=4)
    assert f"ALARM: it reached 5 (delta = 0.2) after image {at}" in capsys.readouterr().err
    judged("--run", run, images[0], "--watch", file)
    (broken := tmp_path / "x.png").write_bytes(b"no image")
    judged("--run", run, images[0], "--watch", file, broken, "--fail-on-alarm", "--strict", status=1)
    judged("--run", run, images[0], "--watch", quiet, "--fail-on-alarm")


def test_the_image_of_the_alarm_is_named_where_it_is_judged(saved, tmp_path, capsys):
    file, scores = tmp_path / "s.safetensors", odd(saved, 20)
    watched(saved, file, scores[:1], delta=0.2)
    with watching(file, saved, "mcm") as watch:
        found = experiment.Watched(watch, file, at_once=True)
        take = found.after(lambda line: None)
        for number, score in enumerate(scores[1:]):
            take({"path": f"{number}.png", "detector": "mcm", "copy_of": None, "score": score})
            take({"path": f"{number}.png", "detector": "knn", "copy_of": None, "score": 0.5})
        take({"path": "x.png", "error": "no image", "is_image": True})
        found.save()
    at = martingale_of(saved, scores, delta=0.2).alarm
    assert f"after image {at} of the stream, {at - 2}.png, the martingale reached 5" in capsys.readouterr().err
    assert found.alarmed and found.new == 19


def test_a_stream_without_end_is_written_as_it_comes(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "IMAGES", 10)
    file, scores = tmp_path / "s.safetensors", np.random.default_rng(0).normal(size=35)
    with watching(file, saved, "mcm") as watch:
        take = experiment.Watched(watch, file, at_once=True).after(lambda line: None)
        for score in scores:
            take({"path": "a.png", "detector": "mcm", "copy_of": None, "score": score})
        assert np.array_equal(load_file(file)["scores"], scores[:30])


def test_what_was_printed_counts_if_the_call_fails(run, images, tmp_path):
    file, listed = tmp_path / "s.safetensors", tmp_path / "list.txt"
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    listed.write_text("\n".join([*map(str, images[:2]), *(str(tmp_path / f"{number}.png") for number in range(8))]))
    with pytest.raises(UserError, match="max-unreadable"):
        detect.main(["--run", str(run), str(listed), "--watch", str(file), "--batch-size=1", "--max-unreadable=0"])
    assert len(load_file(file)["scores"]) == 2
    with pytest.raises(UserError, match="max-unreadable"):
        out = ["--out", str(tmp_path / "o.csv")]
        detect.main(
            ["--run", str(run), str(listed), "--watch", str(file), "--batch-size=1", "--max-unreadable=0", *out]
        )
    assert len(load_file(file)["scores"]) == 2


def test_a_call_that_is_repeated_watches_its_images_once(run, images, tmp_path, monkeypatch):
    broken, whole, out = tmp_path / "b.safetensors", tmp_path / "w.safetensors", tmp_path / "o.csv"

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("clip_ood.detect.prediction_files.CSVFile.write", full)
        with pytest.raises((OSError, SystemExit)):
            detect.main(["--run", str(run), *map(str, images), f"--out={out}", f"--watch={broken}"])
    assert not broken.exists() and out.with_name("o.csv.parts").is_dir()
    judged("--run", run, *images, "--out", out, "--watch", broken)
    judged("--run", run, *images, "--out", tmp_path / "2.csv", "--watch", whole)
    assert broken.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("parts", [[4000], [1, 1999, 0, 2000], [700] * 5 + [500]])
def test_a_restart_has_every_bit_of_a_stream_that_never_stopped(saved, parts, tmp_path):
    scores, file = np.random.default_rng(1).normal(size=4000).round(2), tmp_path / "s.safetensors"
    start = 0
    for size in parts:
        found = watched(saved, file, scores[start : start + size])
        start += size
    assert state(found) == state(martingale_of(saved, scores))
    assert np.array_equal(load_file(file)["scores"], scores)


STREAM = """
import sys
from pathlib import Path
from clip_ood.detect.save import add_encoder
from clip_ood.detect.saved import SavedDetector
from clip_ood.detect.watch_file import watching
import numpy as np
with watching(Path(sys.argv[2]), SavedDetector(Path(sys.argv[1])), "mcm") as watch:
    scores = np.random.default_rng(1).normal(size=2_000_000)
    print("ready", flush=True)
    for start in range(watch.martingale.seen, len(scores), 500):
        watch.take(scores[start : start + 500])
        watch.save()
"""


def test_a_killed_process_leaves_a_whole_file_that_is_gone_on_from(run, saved, tmp_path):
    file, scores = tmp_path / "s.safetensors", np.random.default_rng(1).normal(size=2_000_000)
    command = [sys.executable, "-c", STREAM, run, file]
    for seconds in (0.2, 0.37):
        process = subprocess.Popen(command, cwd=tiny_clip.PROJECT, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        for _ in range(200):
            if file.exists():
                break
            time.sleep(0.1)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        process.stdout.close()
        kept = load_file(file)["scores"].numpy()
        assert len(kept) and len(kept) % 500 == 0 and np.array_equal(kept, scores[: len(kept)])
    seen = len(kept)
    found = watched(saved, file, scores[seen : seen + 300])
    assert state(found) == state(martingale_of(saved, scores[: seen + 300]))
    assert [each.name for each in tmp_path.iterdir() if each.suffix == ".tmp"] == []


def test_two_processes_at_one_file_are_refused_by_name(run, saved, images, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.5)
    file = tmp_path / "s.safetensors"
    process = subprocess.Popen(
        [sys.executable, "-c", STREAM, run, file], cwd=tiny_clip.PROJECT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(InUse, match=f"in use by process {process.pid}"):
            detect.main(["--run", str(run), str(images[0]), "--watch", str(file)])
        with pytest.raises(InUse, match="wait until it ends"), watching(file, saved, "mcm"):
            pass
    finally:
        process.kill()
        process.wait(20)
        process.stdout.close()


def asked(run, image, file, *options):
    with pytest.raises((UserError, SystemExit)) as ended:
        detect.main(["--run", str(run), str(image), "--watch", str(file), *options])
    return str(ended.value)


def test_a_file_that_is_not_ours_is_refused_and_left_alone(root, run, saved, images, tmp_path):
    file = tmp_path / "s.safetensors"
    watched(saved, file, [0.1, 0.2, 0.3])
    content, tensors = file.read_bytes(), load_file(file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert "watches the scores of mcm, and not of knn" in asked(run, images[0], file, "--detector=knn")
    assert "watches with delta = 0.01, and not 0.05" in asked(run, images[0], file, "--delta=0.05")
    other = judged_run.make(root, "other", "zero_shot", detectors=["mcm"], seed=5)
    assert "of another mcm" in asked(other, images[0], file)
    header = json.loads(metadata["watch"])
    for wrong in ({"delta": 2.0}, {"seed": -1}, {"format": 2}, {"digest": "0"}, {"more": 1}):
        save_file(tensors, file, {"watch": json.dumps(header | wrong)})
        assert "is damaged, or no file of a watched stream" in asked(run, images[0], file)
    for wrong in (
        {"scores": tensors["scores"].float()},
        {"scores": tensors["scores"] * np.nan},
        {"others": tensors["scores"]},
    ):
        save_file(wrong, file, metadata)
        assert "is damaged, or no file of a watched stream" in asked(run, images[0], file)
    for damaged in (content[:-9], b"", b"{}" * 40, content[:-1] + bytes([content[-1] ^ 1])):
        file.write_bytes(damaged)
        assert "is damaged, or no file of a watched stream" in asked(run, images[0], file)
        assert file.read_bytes() == damaged


def test_scores_that_do_not_calibrate_a_stream_are_refused_with_the_way_out(root, images, tmp_path):
    file = tmp_path / "s.safetensors"
    folds = judged_run.cross_fitted(root, "folds", detectors=["mahalanobis", "knn"])
    for column in ("mahalanobis", "knn"):
        told = asked(folds, images[0], file, f"--detector={column}")
        assert "each scored without itself" in told and "clip-ood recalibrate --run RUN" in told
    chosen = judged_run.make(
        root,
        "chosen",
        "zero_shot",
        detectors=[{"name": "knn", "k": [1, 3]}],
        data={"ood_val": "near", "ood": {"far": "far"}},
    )
    told = asked(chosen, images[0], file)
    assert "also chose it among 2 candidates" in told and "clip-ood recalibrate" in told
    assert not file.exists()


def test_nan_is_refused_and_the_file_stays(saved, tmp_path):
    file = tmp_path / "s.safetensors"
    watched(saved, file, [0.1])
    before = file.read_bytes()
    with pytest.raises(UserError, match="NaN"):
        watched(saved, file, [0.2, float("nan")])
    assert file.read_bytes() == before


def test_the_file_is_that_of_the_folder_with_its_encoder_too(run, saved, tmp_path):
    """Weights that are added to the folder change its manifest, and no score."""
    copy = tmp_path / "copy"
    shutil.copytree(run / "detector", copy)
    file = tmp_path / "s.safetensors"
    watched(saved, file, [0.1])
    assert add_encoder(SavedDetector(copy)) and watched(SavedDetector(copy), file, [0.2]).seen == 2


def test_a_link_stays_one(run, saved, images, tmp_path):
    file, link = tmp_path / "s.safetensors", tmp_path / "link.safetensors"
    watched(saved, file, [0.1])
    link.symlink_to(file)
    judged("--run", run, images[0], "--watch", link)
    assert link.is_symlink() and watched(saved, file).seen == 2


def test_python_watches_predictions(run, saved, images, tmp_path):
    predictor = load(run)
    with watching(tmp_path / "s.safetensors", predictor.saved, predictor.column) as watch:
        watch.take(each.score for each in predictor(images))
        watch.save()
    assert state(watched(saved, tmp_path / "s.safetensors")) == state(watch.martingale)
    with pytest.raises(WatchError, match="delta"), watching(watch.path, saved, "mcm", delta=0.5):
        pass


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--delta=0.1"], "goes with --watch"),
        (["--fail-on-alarm"], "goes with --watch"),
        (["--watch=s.safetensors", "--delta=1"], "between 0 and 1"),
        (["--watch=s.safetensors", "--odd"], "leave one out"),
        (["--watch=s.csv"], "must end with .safetensors"),
        (["--watch=nowhere/s.safetensors"], "no folder nowhere"),
        ([f"--watch={'s' * 210}.safetensors"], "is too long by 4 bytes"),
        (["--watch=s.safetensors", "--adapt=oodd", "--memory=m.safetensors"], "leave --watch out"),
    ],
)
def test_options_that_do_not_go_together(run, images, options, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UserError, SystemExit), match=told):
        detect.main(["--run", str(run), str(images[0]), *options])
    assert not list(tmp_path.iterdir())


def test_export_watches_nothing(run, tmp_path):
    with pytest.raises(UserError, match="name some"):
        detect.main(["--run", str(run), "--with-encoder", "--watch", str(tmp_path / "s.safetensors")])
