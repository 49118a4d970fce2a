"""clip-ood serve: a server process and real clients, good, hostile and slow."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import struct
import threading
import time
import zlib
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from unittest.mock import Mock

import httpx
import judged_run
import pytest
from judged_run import judged, read
from PIL import Image
from safetensors.torch import load_file
from served import Served, answer

from clip_ood.detect.saved import SavedDetector
from clip_ood.detect.watch_file import watching
from clip_ood.errors import ConfigError, UserError
from clip_ood.experiments import serving
from clip_ood.experiments import watching as stream
from clip_ood.experiments.commands import serve as command
from clip_ood.experiments.serving import Asked, Serving

pytestmark = pytest.mark.slow

TOKEN = "a secret"
PATIENCE = 1.5
MOST = {"bytes": 200_000, "images": 12, "pixels": 250_000, "connections": 60}


@pytest.fixture(scope="module")
def run(root):
    return judged_run.make(root, "served", "zero_shot", detectors=["mcm", "knn"])


@pytest.fixture(scope="module")
def images(root):
    return sorted((root / "data/near").glob("*.png"))


@pytest.fixture(scope="module")
def watch_file(tmp_path_factory):
    return tmp_path_factory.mktemp("watch") / "stream.safetensors"


@pytest.fixture(scope="module")
def server(run, watch_file):
    limits = [f"--max-{name}={most}" for name, most in MOST.items()]
    options = ["--token", TOKEN, "--detector=all", "--watch", watch_file, f"--patience={PATIENCE}", *limits]
    with Served(run, *options, token=TOKEN) as server:
        yield server


def of_detect(run: Path, paths: list[Path], out: Path, *options: str) -> list[dict]:
    """The lines of detect.py, with their values as JSON has them."""
    judged("--run", run, *paths, "--out", out, *options)
    return [json.loads(line) for line in out.read_text().splitlines()]


def reasons(response: httpx.Response) -> str:
    return response.json()["error"]


def png(width: int, height: int) -> bytes:
    """A PNG file that says that it has so many pixels, and holds none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


# Predictions


def test_a_form_of_files_is_judged_as_detect_does(server, run, images, tmp_path):
    """The same images in the same batches: the same bits, and the same keys."""
    expected = of_detect(run, images, tmp_path / "out.jsonl", "--detector=all")
    got = server.files(images)
    assert got.status_code == 200 and got.headers["content-type"] == "application/json"
    assert got.json()["predictions"] == [line | {"path": Path(line["path"]).name} for line in expected]
    judged("--run", run, *images, "--out", tmp_path / "out.csv")
    assert list(got.json()["predictions"][0]) == list(read(tmp_path / "out.csv")[0])
    assert got.json()["digest"] == json.loads((run / "detector/detector.json").read_text())["digest"]


def test_bytes_and_base64_are_judged_as_files_are(server, images):
    expected = [line for line in server.files(images[:2]).json()["predictions"]]
    raw = server.post(content=images[0].read_bytes(), headers={"content-type": "image/png"}).json()["predictions"]
    octets = {"content-type": "application/octet-stream"}
    other = server.post(content=images[1].read_bytes(), headers=octets).json()["predictions"]
    texts = [b64encode(each.read_bytes()).decode() for each in images[:2]]
    encoded = server.post(json={"images": texts}).json()["predictions"]
    for found in (raw + other, encoded):
        assert [line["path"] for line in found] == [None] * 4
        for line, wanted in zip(found, expected, strict=True):
            assert line["score"] == pytest.approx(wanted["score"], rel=1e-5)  # batches of other sizes
            assert {**line, "score": 0, "confidence": 0, "p_value": 0} == {
                **wanted, "path": None, "score": 0, "confidence": 0, "p_value": 0,
            }  # fmt: skip


def test_many_clients_at_once_share_batches_and_get_their_own_answers(server, images):
    expected = {each.name: server.files([each]).json()["predictions"][0]["score"] for each in images}
    before = server.figures()

    def ask(number: int) -> tuple[str, dict]:
        each = images[number % len(images)]
        return each.name, server.files([each]).json()["predictions"][0]

    with ThreadPoolExecutor(16) as pool:
        for name, line in pool.map(ask, range(160)):
            assert line["path"] == name and line["score"] == pytest.approx(expected[name], rel=1e-5)
    after = server.figures()
    batches, judged_images = (
        after[f"clip_ood_batch_images_{each}"] - before[f"clip_ood_batch_images_{each}"] for each in ("count", "sum")
    )
    assert judged_images == 160 and batches < 160


def test_an_image_that_cannot_be_read_leaves_the_others(server, images, tmp_path):
    (odd := tmp_path / "odd.png").write_bytes(b"no image")
    (huge := tmp_path / "huge.png").write_bytes(png(100_000, 100_000))
    (large := tmp_path / "large.png").write_bytes(png(600, 500))
    lines = server.files([images[0], odd, huge, large, images[1]]).json()["predictions"]
    assert [line["path"] for line in lines] == [images[0].name] * 2 + ["odd.png", "huge.png", "large.png"] + [
        images[1].name
    ] * 2
    told = [line["error"] for line in lines if "error" in line]
    assert len(told) == 3 and told[0].startswith("UnidentifiedImageError") and "pixels" in told[1]
    assert "600 × 500 pixels, and at most 250,000 are taken" in told[2]
    (only,) = server.post(json={"images": ["http://127.0.0.1/a.png"]}).json()["predictions"]
    assert "not base64" in only["error"]


# What is refused


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"content": b"", "headers": {"content-type": "image/png"}}, 400, "no body"),
        ({"content": b"x"}, 415, "no content type"),
        ({"data": {"a": "b"}}, 415, "x-www-form-urlencoded"),
        ({"content": b"x", "headers": {"content-type": "text/html"}}, 415, "the type text/html"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "no JSON"),
        ({"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}, 413, "100,000 lists"),
        ({"json": ["a"]}, 400, "no object with the key images"),
        ({"json": {"images": [], "url": "http://x"}}, 400, "no object with the key images alone"),
        ({"json": {"images": [3]}}, 400, "no list of texts"),
        ({"json": {"images": []}}, 400, "no images"),
        ({"content": b'{"images": ["eA=="], "images": []}', "headers": {"content-type": "application/json"}}, 400, "no JSON"),
        ({"json": {"images": ["eA=="] * 13}}, 413, "13 images, and at most 12"),
        ({"files": [("images", (f"{n}.png", b"x")) for n in range(13)]}, 413, "13 images, and at most 12"),
        ({"files": {"field": (None, b"x")}}, 400, "part 'field' is no file"),
        ({"content": b"--a\r\n", "headers": {"content-type": "multipart/form-data; boundary=a"}}, 400, "no images"),
        ({"content": b"--a\r\n\r\n--a\r\n\r\n", "headers": {"content-type": "multipart/form-data; boundary=a"}}, 400, "cut off"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "no boundary"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data; boundary*=undefined''x"}}, 400, "boundary is not"),
        ({"content": b"x" * 200_001, "headers": {"content-type": "image/png"}}, 413, "200,001 bytes, and at most 200,000"),
        ({"content": iter([b"x" * 150_000] * 2), "headers": {"content-type": "image/png"}}, 413, "more bytes"),
    ],
)  # fmt: skip
def test_what_is_no_request_for_predictions_is_refused_with_a_reason(server, asked, status, words):
    before = server.figures().get(f"clip_ood_requests_total /predict {status}", 0)
    got = server.post(**asked)
    assert got.status_code == status and words in reasons(got)
    assert server.figures()[f"clip_ood_requests_total /predict {status}"] == before + 1


def test_a_request_of_a_gigabyte_is_refused_before_it_is_sent(server):
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: image/png\r\n"
    begun = time.monotonic()
    got = answer(server.bare(f"{head}Content-Length: 1000000000\r\n\r\n".encode() + b"x" * 1000))
    assert got.startswith(b"HTTP/1.1 413 ") and b"1,000,000,000 bytes" in got
    assert PATIENCE - 0.1 < time.monotonic() - begun < PATIENCE + 5  # what is sent until then is dropped


def test_slow_clients_are_refused_and_disturb_nobody(server, images):
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: image/png\r\n"
    whole = f"{head}Content-Length: 1000\r\n\r\n".encode()

    def drip(begin: bytes) -> bytes:
        connection = server.bare(begin)
        try:
            while True:
                connection.sendall(b"x")
                time.sleep(0.2)
                connection.setblocking(False)
                try:
                    if connection.recv(1, 2):  # MSG_PEEK
                        break
                except BlockingIOError:
                    pass
                finally:
                    connection.settimeout(30)
        except OSError:
            pass
        return answer(connection)

    with ThreadPoolExecutor(40) as pool:
        heads = [pool.submit(drip, head.encode()) for _ in range(20)]
        bodies = [pool.submit(drip, whole) for _ in range(20)]
        while not all(each.done() for each in heads + bodies):
            assert server.files(images[:1]).status_code == 200
            time.sleep(0.1)
        for each in heads:
            assert each.result().startswith(b"HTTP/1.1 408 ") and b"head of the request" in each.result()
        for each in bodies:
            assert each.result().startswith(b"HTTP/1.1 408 ") and b"did not come within 1.5 s" in each.result()


def test_who_does_not_read_his_answers_is_cut_off(server):
    ask = f"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
    connection = server.bare(b"")
    with connection, pytest.raises((ConnectionResetError, BrokenPipeError)):
        for _ in range(100_000):
            connection.sendall(ask)  # it stops when the server reads no more, and fails when the connection is closed


def test_an_answered_client_may_be_silent_for_longer_than_a_head_may_take(server):
    ask = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    connection = server.bare(b"")

    def is_alive() -> bool:
        connection.sendall(ask)
        got = b""
        while not got.endswith(b"}") and (more := connection.recv(65536)):  # head and body may come one after the other
            got += more
        return got.startswith(b"HTTP/1.1 200 ")

    assert is_alive()
    time.sleep(PATIENCE + 1)
    assert is_alive()
    connection.sendall(ask[:20])
    begun = time.monotonic()
    assert answer(connection).startswith(b"HTTP/1.1 408 ")
    assert PATIENCE - 0.1 < time.monotonic() - begun < PATIENCE + 5


def test_a_refused_client_that_falls_silent_after_its_body_is_cut_off(server):
    connection = server.bare(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1\r\n\r\n")
    got = b""
    while not got.endswith(b"}") and (more := connection.recv(65536)):
        got += more
    assert got.startswith(b"HTTP/1.1 401 ")
    connection.sendall(b"x")
    assert answer(connection) == b""  # before its time is over, which is 30 s


def test_pictures_that_take_more_than_their_pixels_say_are_not_decoded(server, images):
    small = BytesIO()
    Image.new("RGB", (16, 16)).save(small, "JPEG", progressive=True)
    scan = small.getvalue().index(b"\xff\xda")
    scans = small.getvalue()[:scan] + 501 * small.getvalue()[scan:-2] + b"\xff\xd9"
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 16384, 323: 16384, 324: 200, 325: 4}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    tiled = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(100)
    files = [("x", (name, content)) for name, content in (("scans", scans), ("tiles", tiled))]
    told = [line["error"] for line in server.post(files=files).json()["predictions"]]
    assert "scans, and at most 500" in told[0] and "at most 250,000 are taken" in told[1]


def test_one_connection_too_many_is_refused(server, images):
    server.client.close()
    server.client = httpx.Client(base_url=server.client.base_url, headers=server.client.headers, trust_env=False)
    open_ones = [server.bare(b"") for _ in range(MOST["connections"])]
    assert server.client.get("/ready").status_code == 200
    got = server.files(images[:1])
    assert got.headers["connection"] == "close"
    assert got.status_code == 503 and "60 connections" in reasons(got) and got.headers["retry-after"] == "5"
    for each in open_ones:
        each.close()
    assert server.files(images[:1]).status_code == 200


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/version", {"authorization": ""}, 401),
        ("/version", {"authorization": "Bearer another"}, 401),
        ("/version", {"authorization": TOKEN}, 401),
        ("/metrics", {"authorization": "Bearer caf\u00e9".encode("latin-1")}, 401),
        ("/openapi.json", {"authorization": ""}, 401),
        ("/health", {"authorization": ""}, 200),
        ("/ready", {"authorization": ""}, 200),
        ("/version", {"host": "another.example"}, 421),
        ("/version", {"origin": "http://another.example"}, 403),
        ("/version", {"origin": "http://["}, 403),
        ("/docs", {"authorization": ""}, 401),
        ("/redoc", {}, 404),
        ("/predict", {}, 405),
    ],
)
def test_who_may_ask_for_what(server, path, headers, status):
    assert server.client.get(path, headers=headers).status_code == status


# What it tells of itself


def test_the_detector_is_named_and_the_routes_are_described(server, run):
    told = server.client.get("/version").json()
    assert told["detectors"] == ["mcm", "knn"] and told["digest"] and told["versions"]["torch"]
    described = server.client.get("/openapi.json").json()
    assert set(described["paths"]) == {"/predict", "/health", "/ready", "/version", "/metrics"}
    page = server.client.get("/docs")
    assert page.headers["content-type"].startswith("text/html") and "<script" not in page.text
    assert all(f" {path}</code>" in page.text for path in described["paths"])
    assert "Judges images: files of a form" in page.text and "<code>multipart/form-data</code>" in page.text
    assert set(described["paths"]["/predict"]["post"]["requestBody"]["content"]) == {
        "multipart/form-data", "application/json", "application/octet-stream", "image/*",
    }  # fmt: skip


def test_figures_count_images_and_watch_the_stream(server, images):
    before = server.figures()
    lines = [line for line in server.files(images).json()["predictions"] if line["detector"] == "mcm"]
    server.post(content=b"no image", headers={"content-type": "image/png"})
    after = server.figures()

    def new(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    flagged = sum(line["is_ood"] for line in lines)
    assert new("clip_ood_images_total mcm ood") == flagged and new("clip_ood_images_total mcm id") == 9 - flagged
    assert new("clip_ood_p_value_count mcm") == 9 and new("clip_ood_unreadable_images_total") == 1
    assert new("clip_ood_p_value_bucket mcm 0.1") == sum(line["p_value"] <= 0.1 for line in lines)
    ood, others = (after.get(f"clip_ood_images_total mcm {each}", 0) for each in ("ood", "id"))
    assert after["clip_ood_flagged_share mcm"] == pytest.approx(ood / (ood + others))
    assert new("clip_ood_predict_seconds_count") == 2 and after["clip_ood_waiting_images"] == 0
    assert new("clip_ood_watch_images") == 9 and after["clip_ood_watch_alarm"] in (0, 1)
    assert after["clip_ood_watch_log_martingale_highest"] >= after["clip_ood_watch_log_martingale"]
    assert after["clip_ood_watch_log_limit"] == pytest.approx(4.605, abs=1e-3)


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


# Back-pressure and the end


def test_what_waits_is_answered_at_the_end_and_more_is_refused(run, images):
    """A batch that waits long for others: one image waits, and there is no room for another."""
    options = ["--wait=3000", "--batch=50", "--max-waiting=1", "--max-images=1"]
    with Served(run, *options) as server, ThreadPoolExecutor(1) as pool:
        waits = pool.submit(server.files, images[:1])
        while not server.figures()["clip_ood_waiting_images"]:
            time.sleep(0.01)
        with httpx.Client(base_url=server.client.base_url, trust_env=False) as other:
            full = other.post("/predict", content=images[0].read_bytes(), headers={"content-type": "image/png"})
        assert full.status_code == 503 and full.headers["retry-after"] == "1" and "1 images wait" in reasons(full)
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
            assert got.status_code == 503 and "the server ends" in reasons(got) and got.headers["retry-after"] == "5"
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
