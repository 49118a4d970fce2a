"""Ray Data judges as one process does: the same lines in input order, also when workers are killed, and the predictor is its callable."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from judged_run import judged, read
from test_given_features import config as config_of_arrays
from test_given_features import drawn

import detect
import eval as evaluation
from clip_ood import load
from clip_ood.callbacks.prediction_writer import PredictionParts
from clip_ood.data.inputs import Source, sources
from clip_ood.detect.batch_rows import row_of
from clip_ood.detect.batches import SourceBatch
from clip_ood.errors import ConfigError, UserError
from clip_ood.experiments import detect as conducting
from clip_ood.files.unreadable import TooManyUnreadable
from clip_ood.lightning_modules.prediction import PredictionModule
from clip_ood.process import stalls

ray = pytest.importorskip("ray", reason="needs Ray: pip install -e '.[test]'")
ray_engine = pytest.importorskip("clip_ood.experiments.ray_engine")
pytestmark = pytest.mark.slow

NUMBERS = ("score", "p_value", "confidence")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Ray on this machine, with two CPUs and a GPU that is only a number."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(conducting, "BATCHES", 2)


@pytest.fixture
def alone(monkeypatch):
    """The batches that this process judges itself."""
    real, found = PredictionModule.predict_step, []
    monkeypatch.setattr(PredictionModule, "predict_step", lambda *a: found.append(a[1]) or real(*a))
    return found


@pytest.mark.parametrize("more", [["--actors", "2"], ["--actors", "1", "--gpus", "0.5"]])
def test_workers_write_what_one_process_does(run, root, tmp_path, alone, more):
    (tmp_path / "bad.png").write_bytes(b"no image")
    images = [root / "data" / "id", tmp_path / "bad.png", root / "data" / "near"]
    options = ["--detector", "all", "--nearest", "2"]
    judged("--run", run, *images, "--out", tmp_path / "one.csv", *options)
    alone.clear()
    judged("--run", run, *images, "--out", tmp_path / "ray.csv", "--engine", "ray", *more, *options)
    assert not alone
    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    failures = [tmp_path / f"{name}.csv.unreadable.csv" for name in ("one", "ray")]
    assert failures[0].read_bytes() == failures[1].read_bytes()


def workers() -> list[int]:
    """The processes of actors below this one."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            title = (place / "cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::MapWorker(Map(Judge))") and below(int(place.name)):
            found.append(int(place.name))
    return found


def below(process: int) -> bool:
    while process > 1:
        if process == os.getpid():
            return True
        try:
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


def test_a_killed_worker_costs_nothing_but_time(run, root, tmp_path, monkeypatch):
    images = [str(path) for path in sorted((root / "data" / "id").rglob("*.png"))] * 60
    (tmp_path / "list.txt").write_text("\n".join(images))
    judged("--run", run, tmp_path / "list.txt", "--out", tmp_path / "one.csv")
    real, kept, killed = PredictionParts.keep, [], []
    monkeypatch.setattr(PredictionParts, "keep", lambda *a: kept.append(a[1]) or real(*a))

    def kill() -> None:
        while len(kept) < 5:
            time.sleep(0.02)
        killed.append((workers()[0], len(kept)))
        os.kill(killed[0][0], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    judged("--run", run, tmp_path / "list.txt", "--out", tmp_path / "ray.csv", "--engine", "ray", "--actors", "2")
    killer.join(5)
    assert killed and killed[0][1] < len(kept), "it was killed after the end"
    assert kept == list(range(len(kept)))  # each part once
    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()


def test_a_stopped_call_goes_on_with_what_is_missing(run, root, tmp_path, monkeypatch):
    judged("--run", run, root / "data" / "id", "--out", tmp_path / "one.csv")
    real, kept = PredictionParts.keep, []

    def stops(*given):
        if len(kept) == 1:
            raise KeyboardInterrupt
        kept.append(given[1])
        real(*given)

    command = ["--run", str(run), str(root / "data" / "id"), "--out", str(tmp_path / "ray.csv"), "--engine", "ray"]
    monkeypatch.setattr(PredictionParts, "keep", stops)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        detect.main(command)
    monkeypatch.setattr(PredictionParts, "keep", lambda *a: kept.append(a[1]) or real(*a))
    judged(*command)
    assert kept == list(range(len(kept)))
    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()


def test_errors_of_workers_are_those_of_one_process(run, root, tmp_path):
    for number in range(9):
        (tmp_path / f"bad{number}.png").write_bytes(b"no image")
    with pytest.raises(TooManyUnreadable):
        detect.main(["--run", str(run), str(tmp_path), "--out", str(tmp_path.with_suffix(".csv")), "--engine", "ray"])


def test_an_error_of_a_worker_is_told_as_that_of_this_process(run, root, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    real = ray_engine.connected

    @contextmanager
    def emptied():
        shutil.rmtree(copy / "detector")
        with real():
            yield

    monkeypatch.setattr(ray_engine, "connected", emptied)
    command = ["--run", str(copy), str(root / "data" / "near"), "--out", str(tmp_path / "a.csv")]
    with pytest.raises(UserError, match="detector") as told:
        detect.main([*command, "--engine", "ray", "--actors", "1"])
    assert "ray" not in type(told.value).__module__


def test_a_pipe_is_not_for_several_processes(run, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        for more in (["--engine", "ray"], ["--shard", "0/2"]):
            with pytest.raises(UserError, match="give a list in a file"):
                detect.main(["--run", str(run), f"/dev/fd/{reading}", "--out", str(tmp_path / "a.csv"), *more])
    finally:
        os.close(reading)


@pytest.mark.parametrize(
    "more, told",
    [
        ([], "give --out FILE"),
        (["--out", "a.csv", "-"], "instead of standard input"),
        (["--out", "a.csv", "--shard", "0/2"], "--shard does not go with --engine ray"),
        (["--out", "a.csv", "--gpus", "-1"], "must be a number of GPUs"),
        (["--out", "a.csv", "--gpus", "8"], "1 worker takes 8 GPUs, and the Ray cluster has 1"),
        (["--out", "a.csv", "--actors", "3"], "3 workers take 3 CPUs, and the Ray cluster has 2"),
        (["--out", "a.csv", "--gpus", "1.5"], "must be a number of GPUs, as 1 or 2"),
        (["--out", "a.csv", "--workers", "2"], "leave --workers out"),
        (["--out", "a.csv", "--trainer.devices=2", "--trainer.accelerator=cpu"], "leave --trainer.devices out"),
    ],
)
def test_what_does_not_go_with_ray_is_refused(run, root, tmp_path, monkeypatch, more, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=told):
        detect.main(["--run", str(run), str(root / "data" / "near"), "--engine", "ray", *more])


def test_a_signed_address_is_not_written_down_by_a_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr("clip_ood.config.detect_checks.check_path", lambda path: None)
    signed = r"example\.org/a\.jpg is signed .*: put such addresses into a list"
    for query, told in {"X-Amz-Signature=1f": signed, "id=1&token=1f": signed, "v=1f": "run"}.items():
        command = ["--run", "run", "near/", f"https://example.org/a.jpg?{query}", "--out", "a.csv", "--engine", "ray"]
        with pytest.raises(UserError, match=told) as error:
            detect.main(command)
        assert "1f" not in str(error.value) and ("signed" in str(error.value)) == (told == signed)


def test_a_read_that_stalls_in_a_worker_is_told(run, root, monkeypatch):
    """In an actor, a task that decodes and the one that lists, which the watch over the command does not see."""
    monkeypatch.setattr(stalls, "_limit", stalls.LIMIT)
    path = str(root / "data" / "near" / "0.png")
    row = row_of(SourceBatch(tuple(sources([path])), 0, True)) | {ray_engine.WRONG: ""}
    request = conducting.Request(run, [], timeout=0.2)
    actor = ray_engine.Judge(request, ["knn"], os.getcwd())
    assert not actor(row)["wrong"]

    def hang(*given):
        with stalls.reading(path):
            time.sleep(2)

    monkeypatch.setattr(Source, "read", hang)
    late = rf"{path} cannot be read: nothing has come for 0\.2 s"
    for found in (
        actor(row),
        ray_engine._read(actor.pictures, os.getcwd(), 0.2, row),
        next(ray_engine.Batches(lambda: iter(hang, 0), 8, 1, lambda *part: False, 0.2)._blocks()).to_pylist()[0],
    ):
        assert re.match(late, found["wrong"])
        with pytest.raises(UserError, match=late):
            ray_engine._keep([actor(found)], None)


def test_options_of_ray_alone_are_refused_without_it(run, root):
    for option in (["--actors", "2"], ["--gpus", "1"]):
        with pytest.raises(ConfigError, match="goes with --engine ray"):
            detect.main(["--run", str(run), str(root / "data" / "near"), *option])
    with pytest.raises(SystemExit):
        detect.main(["--run", str(run), "x", "--actors", "3-2"])


def judge():
    """The actor of Ray Data that docs/ray.md shows; a class in a function goes to workers that cannot import this file."""

    class Judge:
        def __init__(self, run: str) -> None:
            self.predictor = load(run)

        def __call__(self, batch):
            return self.predictor(batch)

    return Judge


def check(rows, expected) -> None:
    assert [row["is_ood"] for row in rows] == [each.is_ood for each in expected]
    for name in NUMBERS:
        assert [row[name] for row in rows] == pytest.approx([getattr(each, name) for each in expected], rel=1e-5)
    assert [row["predicted_class"] for row in rows] == [each.predicted_class for each in expected]


def test_the_predictor_is_the_callable_of_map_batches(run, root, tmp_path):
    near = sorted(str(path) for path in (root / "data" / "near").iterdir())
    (tmp_path / "bad.png").write_bytes(b"no image")
    paths = [*near, str(tmp_path / "bad.png")]
    data = ray.data.from_items([{"path": path, "id": number} for number, path in enumerate(paths)])
    pool = ray.data.ActorPoolStrategy(size=1)
    rows = data.map_batches(judge(), fn_constructor_args=(str(run),), compute=pool, batch_size=4).take_all()
    rows.sort(key=lambda row: row["id"])
    assert [row["path"] for row in rows] == paths
    assert "cannot identify" in rows[-1]["error"] and rows[-1]["is_ood"] is None and np.isnan(rows[-1]["score"])
    check(rows[:-1], load(run)(near))
    assert {row["error"] for row in rows[:-1]} == {""}


def test_the_predictor_is_the_callable_of_datasets_map(run, root):
    datasets = pytest.importorskip("datasets", reason="needs datasets: pip install -e '.[test]'")
    near = sorted(str(path) for path in (root / "data" / "near").iterdir())
    predictor = load(run)
    rows = datasets.Dataset.from_dict({"image": near, "id": list(range(len(near)))})
    for decode in (True, False):
        images = rows.cast_column("image", datasets.Image(decode=decode))
        made = images.map(predictor, batched=True, batch_size=4, new_fingerprint=f"judged{decode}")
        assert made["id"] == list(range(len(near)))
        check(list(made.remove_columns("image")), predictor(near))


def test_given_features_are_judged_by_map_batches(tmp_path):
    for name, seed in (("train", 0), ("test", 1)):
        values, labels = drawn(seed)
        np.savez(tmp_path / f"{name}.npz", features=values, labels=labels)
    np.save(tmp_path / "far.npy", drawn(2, shift=3.0)[0])
    given = config_of_arrays(tmp_path, "plain", detectors=["knn"])
    evaluation.main(["--config", given, "--data.ood={far: {features: far.npy}}"])
    values = np.load(tmp_path / "far.npy")[:7]
    pq.write_table(pa.table({"features": [*values, None], "id": range(8)}), tmp_path / "new.parquet")
    data = ray.data.read_parquet(str(tmp_path / "new.parquet"))
    pool, run = ray.data.ActorPoolStrategy(size=1), str(tmp_path / "runs" / "plain")
    rows = data.map_batches(judge(), fn_constructor_args=(run,), compute=pool, batch_size=3).take_all()
    rows.sort(key=lambda row: row["id"])
    check(rows[:-1], load(run)(values))
    assert [bool(row["error"]) for row in rows] == [*7 * [False], True]


def test_relative_paths_mean_the_same_to_workers(run, root, tmp_path, monkeypatch):
    monkeypatch.chdir(root / "data")
    judged("--run", run, "near", "--out", tmp_path / "ray.csv", "--engine", "ray", "--actors", "1")
    assert read(tmp_path / "ray.csv")[0]["path"] == "near/0.png"
