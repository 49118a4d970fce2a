"""clip-ood serve from its start to its end: watched streams, new detectors, what waits, and options that cannot be."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import httpx
import judged_run
import pytest
from safetensors.torch import load_file
from served import Served, reason

from clip_ood.detect.saved import SavedDetector
from clip_ood.detect.watch_file import watching
from clip_ood.errors import ConfigError, UserError
from clip_ood.experiments import serving
from clip_ood.experiments import watching as stream
from clip_ood.experiments.commands import serve as command
from clip_ood.experiments.serving import Asked, Serving
from clip_ood.serve import listening

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(root):
    return judged_run.make(root, "living", "zero_shot", detectors=["mcm", "knn"])


# A watched stream


def test_a_watched_stream_is_kept_and_gone_on_from(run, images, tmp_path):
    file = tmp_path / "stream.safetensors"
    for end in (5, 12):
        with Served(run, "--watch", file) as server:
            assert server.files(images[: end % 9 or 9]).status_code == 200
            assert server.end() == 0
        assert len(load_file(file)["scores"]) == {5: 5, 12: 8}[end]
    assert "8 images of the stream, 3 of them new" in "".join(server.told)


def test_no_image_is_left_out_of_a_watched_stream_while_the_disk_is_full(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stream, "SECONDS", 0.0)
    file, scores = tmp_path / "stream.safetensors", [0.1 * number for number in range(12)]
    known = {"path": None, "detector": "mcm", "copy_of": None, "is_ood": False, "p_value": 0.5}
    lines = [[known | {"score": score}] for score in scores]
    with watching(file, SavedDetector(run), "mcm") as watch:
        server = Serving(Asked(run), stream.Watched(watch, file, at_once=True))
        with monkeypatch.context() as full:
            full.setattr(watch, "save", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
            server.see(lines[:7])
        assert "is tried again (No space left on device)" in capsys.readouterr().err
        server.see(lines[7:])
        server.pool.shutdown()
    assert load_file(file)["scores"].tolist() == scores


def test_a_watch_refuses_a_folder_whose_first_detector_is_another(run, tmp_path):
    file = tmp_path / "stream.safetensors"
    with watching(file, SavedDetector(run), "mcm") as watch:
        server = Serving(Asked(run, detector="knn"), stream.Watched(watch, file, at_once=True))
        with pytest.raises(UserError, match=r"watches the scores of mcm, and by .* knn would judge"):
            server.load()
        server.pool.shutdown()


# Back-pressure and the end


def test_a_thread_that_dies_ends_the_server_with_its_error_at_once(run, images, monkeypatch):
    server = Serving(Asked(run, device="cpu"), None)
    monkeypatch.setattr(server.batches, "_judge", lambda batch: 1 / 0)
    with serving.listen("127.0.0.1", None) as at, ThreadPoolExecutor(1) as pool:
        address = f"http://127.0.0.1:{at.getsockname()[1]}"

        def ask() -> httpx.Response:
            while httpx.get(f"{address}/ready", trust_env=False).status_code != 200:
                time.sleep(0.05)
            headers = {"content-type": "image/png"}
            return httpx.post(f"{address}/predict", content=images[0].read_bytes(), headers=headers, trust_env=False)

        asked, begun = pool.submit(ask), time.monotonic()
        with pytest.raises(ZeroDivisionError):
            server.run(at)
        assert time.monotonic() - begun < listening.GRACE / 2
        assert asked.result().status_code == 503


def test_the_command_leaves_without_waiting_for_decoders(run, monkeypatch):
    left = Mock()
    monkeypatch.setattr(serving, "serve", Mock())
    monkeypatch.setattr(command, "leave", left)
    command.main(["--run", str(run)])
    left.assert_called_once_with(0)


def test_the_end_waits_for_no_picture_that_is_still_decoded(run):
    server, go = Serving(Asked(run), None), threading.Event()
    server.server.run = lambda sockets: None
    decoded = server.pool.submit(go.wait, 60)
    server.run(Mock())
    assert not decoded.done()
    go.set()


def test_what_waits_is_answered_at_the_end_and_more_is_refused(run, images):
    """A batch that waits long for others: one image waits, and there is no room for another."""
    options = ["--wait=3000", "--batch=50", "--max-waiting=1", "--max-images=1"]
    with Served(run, *options) as server, ThreadPoolExecutor(1) as pool:
        waits = pool.submit(server.files, images[:1])
        while not server.figures()["clip_ood_waiting_images"]:
            time.sleep(0.01)
        with httpx.Client(base_url=server.client.base_url, trust_env=False) as other:
            full = other.post("/predict", content=images[0].read_bytes(), headers={"content-type": "image/png"})
        assert full.status_code == 503 and full.headers["retry-after"] == "1" and "1 images wait" in reason(full)
        server.process.send_signal(signal.SIGTERM)
        assert waits.result().status_code == 200 and waits.result().json()["predictions"][0]["detector"] == "mcm"
        assert server.process.wait(30) == 0
        assert "Stopped: what was asked is answered." in server.told[-1]


def test_a_second_signal_leaves_what_waits(run, images, monkeypatch, capsys):
    """In this process: two requests of one image each wait a minute for others."""
    at = serving.listen("127.0.0.1", None)
    monkeypatch.setattr(serving, "listen", lambda host, port: at)
    address = f"http://127.0.0.1:{at.getsockname()[1]}"

    def ask() -> httpx.Response:
        headers = {"content-type": "image/png"}
        return httpx.post(f"{address}/predict", content=images[0].read_bytes(), headers=headers, trust_env=False)

    def end() -> list[httpx.Response]:
        with ThreadPoolExecutor(2) as pool:
            try:
                while httpx.get(f"{address}/ready", trust_env=False).status_code != 200:
                    time.sleep(0.05)
                waits = [pool.submit(ask) for _ in range(2)]
                while "clip_ood_waiting_images 2.0" not in httpx.get(f"{address}/metrics", trust_env=False).text:
                    time.sleep(0.05)
            finally:
                for _ in range(2):
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(0.3)
            return [each.result() for each in waits]

    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(end)
        begun = time.monotonic()
        serving.serve(Asked(run, batch=50, wait=60_000, device="cpu"))
        assert time.monotonic() - begun < 50
        for got in ending.result():
            assert got.status_code == 503 and "the server ends" in reason(got) and got.headers["retry-after"] == "5"
    told = capsys.readouterr().err
    assert "Stopped: 2 requests were not judged" in told and "Traceback" not in told


# A new detector


@pytest.fixture(scope="module")
def other(root):
    return judged_run.make(root, "other", "zero_shot", detectors=["mcm", "knn"], seed=1)


@pytest.fixture
def swapped(run, other, tmp_path):
    """The detector folder of the run, and that of another one."""
    shutil.copytree(run / "detector", tmp_path / "live")
    return tmp_path / "live", other / "detector"


def test_a_new_detector_takes_over_without_a_request_dropped(swapped, images, tmp_path):
    live, other = swapped
    digests, stop = [], threading.Event()

    def ask(server: Served) -> None:
        with httpx.Client(base_url=server.client.base_url, trust_env=False) as client:
            while not stop.is_set():
                files = [("images", (each.name, each.read_bytes())) for each in images[:3]]
                got = client.post("/predict", files=files)
                assert got.status_code == 200, got.text
                digests.append(got.json()["digest"])
                time.sleep(0.05)

    def replace(new: Path) -> None:
        shutil.copytree(new, tmp_path / "new")
        live.rename(tmp_path / f"old{time.monotonic()}")
        (tmp_path / "new").rename(live)

    with Served(live) as server, ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask, server) for _ in range(3)]
        first = server.client.get("/version").json()["digest"]
        shutil.copytree(other, damaged := tmp_path / "damaged")
        (damaged / "state.safetensors").write_bytes(b"short")
        replace(damaged)
        told = server.heard("is refused, and the one before goes on")
        assert "truncated or was changed" in told
        assert server.client.get("/version").json()["digest"] == first
        replace(other)
        server.heard("A new detector judges from now on")
        second = json.loads((other / "detector.json").read_text())["digest"]
        assert server.client.get("/version").json()["digest"] == second != first
        assert f"clip_ood_detector {second}" in server.figures()
        assert f"clip_ood_detector {first}" not in server.figures()
        stop.set()
        for each in asking:
            each.result()
    assert set(digests) == {first, second}


def test_a_folder_that_is_written_over_judges_as_what_was_loaded(swapped):
    """As `cp -r new/. live/` writes it: the same files with other content."""
    live, _ = swapped
    bank = SavedDetector(live).bank()
    (chunk,) = bank.chunks
    before = chunk.clone()
    for each in live.glob("*.safetensors"):
        with each.open("r+b") as file:
            file.write(bytes(each.stat().st_size))
    assert chunk.equal(before) and before.any()


# What is refused at the start


def test_a_folder_that_cannot_judge_ends_the_command_in_a_line(run, tmp_path):
    with pytest.raises(UserError, match="There is no run or detector folder"):
        command.main(["--run", str(tmp_path / "none")])
    shutil.copytree(run / "detector", tmp_path / "damaged")
    (tmp_path / "damaged/state.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="truncated or was changed"):
        command.main(["--run", str(tmp_path / "damaged")])
    server = Served(run, "--encoder", tmp_path / "none", ready=False)  # seen once it listens
    assert server.heard("error: ").startswith("error: The encoder of ") and server.process.wait(60) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--accept=2"], "--accept: 2 must lie between 0 and 1"),
        (["--wait=-1"], "--wait: -1"),
        (["--patience=0"], "--patience: 0"),
        (["--delta=0.1"], "--delta goes with --watch"),
        (["--watch=x.csv"], "x.csv must end with .safetensors"),
        (["--max-waiting=3"], "--max-waiting must be at least --max-images"),
        (["--max-kept=3"], "--max-kept must be at least --max-bytes"),
        (["--token="], "--token: a token has printable ASCII"),
    ],
)
def test_options_that_cannot_be_are_named(run, options, words):
    with pytest.raises(ConfigError, match=words):
        command.main(["--run", str(run), *options])


def test_the_token_comes_from_the_option_or_the_environment(monkeypatch):
    monkeypatch.delenv(command.TOKEN, raising=False)
    assert command.token_of(None) is None and command.token_of("none") is None and command.token_of("x") == "x"
    monkeypatch.setenv(command.TOKEN, "from there")
    assert command.token_of(None) == "from there" and command.token_of("none") is None
    monkeypatch.setenv(command.TOKEN, "")
    with pytest.raises(ConfigError, match=command.TOKEN):
        command.token_of(None)


def test_a_watch_refuses_a_detector_whose_scores_it_cannot_rank(run, other, images, tmp_path):
    shutil.copytree(run / "detector", live := tmp_path / "live")
    with Served(live, "--watch", tmp_path / "stream.safetensors") as server:
        shutil.copytree(other / "detector", live, dirs_exist_ok=True)
        told = server.heard("is refused, and the one before goes on")
        assert "scores otherwise than what" in told and server.files(images).status_code == 200


def test_whoever_lets_others_in_without_a_token_is_warned(run):
    with Served(run, "--host", "0.0.0.0", ready=False) as server:
        assert "--host 0.0.0.0: other machines can reach it" in server.heard("--token")
