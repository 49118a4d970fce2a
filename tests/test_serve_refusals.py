"""clip-ood serve: what is refused, and clients that are slow, silent or too many."""

from __future__ import annotations

import struct
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import httpx
import judged_run
import pytest
from PIL import Image
from served import HEAD, MOST, OPTIONS, PATIENCE, TOKEN, Served, answer, reason

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(root):
    return judged_run.make(root, "refusing", "zero_shot", detectors=["mcm", "knn"])


@pytest.fixture(scope="module")
def server(run):
    with Served(run, *OPTIONS, token=TOKEN) as server:
        yield server


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
    assert got.status_code == status and words in reason(got)
    assert server.figures()[f"clip_ood_requests_total /predict {status}"] == before + 1


def test_a_request_of_a_gigabyte_is_refused_before_it_is_sent(server):
    begun = time.monotonic()
    got = answer(server.bare(f"{HEAD}Content-Length: 1000000000\r\n\r\n".encode() + b"x" * 1000))
    assert got.startswith(b"HTTP/1.1 413 ") and b"1,000,000,000 bytes" in got
    assert PATIENCE - 0.1 < time.monotonic() - begun < PATIENCE + 5  # what is sent until then is dropped


def test_slow_clients_are_refused_and_disturb_nobody(server, images):
    whole = f"{HEAD}Content-Length: 1000\r\n\r\n".encode()

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
        heads = [pool.submit(drip, HEAD.encode()) for _ in range(20)]
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
    assert got.status_code == 503 and "60 connections" in reason(got) and got.headers["retry-after"] == "5"
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


@pytest.mark.parametrize("path", ["/health", "/ready", "/version", "/metrics", "/docs"])
def test_the_state_may_be_asked_for_by_its_head_alone(server, path):
    got = server.client.head(path)
    assert got.status_code == 200 and int(got.headers["content-length"]) > 0 and not got.content
