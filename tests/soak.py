"""Asks a server for a long time: good, hostile and slow requests at once. python -m soak [SECONDS]

Prints what was asked and how it was answered. The exit status is 1 if the server has ended, if a request had neither predictions nor a reason
for its refusal, if a good one was not judged, but for 1 % of them that may be told to come again, or if the server's memory has grown by more
than 64 MiB, or its open files by more than there are clients, since a warm-up of a sixth of the time.
"""

from __future__ import annotations

import io
import random
import socket
import sys
import tempfile
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import httpx
import judged_run
import tiny_clip
from PIL import Image
from served import Served, answer, png

MOST_GROWTH = 64  # MiB
MOST_FULL = 0.01  # share of the good requests that may get 503
TOKEN = "soak"
PATIENCE = 3.0
OPTIONS = (
    "--token",
    TOKEN,
    f"--patience={PATIENCE}",
    "--max-bytes=8000000",
    "--max-kept=32000000",
    "--max-pixels=4000000",
)
HEAD = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: image/png\r\n"
TOO_LONG = b"x" * 9_000_000
GOOD, HOSTILE, SLOW = 6, 3, 20  # threads
REFUSED = (400, 401, 408, 413, 415, 503)
Asking = Callable[[httpx.Client, random.Random], "httpx.Response | bytes | None"]


@cache
def pictures() -> list[bytes]:
    """Pictures of random sizes and formats."""
    draw = random.Random(0)
    return [drawn(draw) for _ in range(60)]


def picture(draw: random.Random) -> bytes:
    return draw.choice(pictures())


def drawn(draw: random.Random) -> bytes:
    small = Image.frombytes("RGB", (8, 8), draw.randbytes(192))
    with io.BytesIO() as file:
        size = (draw.randrange(8, 700), draw.randrange(8, 700))
        small.resize(size).save(file, draw.choice(["PNG", "JPEG", "WEBP", "TIFF"]))
        return file.getvalue()


def mutated(draw: random.Random) -> bytes:
    content = bytearray(picture(draw))
    for _ in range(draw.randrange(1, 20)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    return bytes(content[: draw.randrange(1, len(content) + 1)])


def form(client: httpx.Client, draw: random.Random, make: Callable = picture, most: int = 6) -> httpx.Response:
    files = [("images", (f"{number}.img", make(draw))) for number in range(draw.randrange(1, most))]
    return client.post("/predict", files=files)


def texts(client: httpx.Client, draw: random.Random) -> httpx.Response:
    return client.post("/predict", json={"images": [b64encode(picture(draw)).decode() for _ in range(2)]})


def raw(client: httpx.Client, draw: random.Random) -> httpx.Response:
    return client.post("/predict", content=picture(draw), headers={"content-type": "image/jpeg"})


def typed(content: bytes, kind: str) -> Asking:
    return lambda client, draw: client.post("/predict", content=content, headers={"content-type": kind})


def gone(client: httpx.Client, draw: random.Random) -> None:
    """Ends in the middle of a body, or before its answer."""
    body = picture(draw)
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=60) as connection:
        connection.sendall(
            f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body[: draw.randrange(len(body) + 1)]
        )


def told(content: bytes) -> Asking:
    def ask(client: httpx.Client, draw: random.Random) -> bytes:
        connection = socket.create_connection((client.base_url.host, client.base_url.port), timeout=60)
        connection.sendall(content)
        return answer(connection)

    return ask


def dripped(begin: str) -> Asking:
    def ask(client: httpx.Client, draw: random.Random) -> bytes:
        connection = socket.create_connection((client.base_url.host, client.base_url.port), timeout=60)
        connection.sendall(begin.encode())
        begun = time.monotonic()
        while time.monotonic() - begun < PATIENCE - 0.5:
            connection.sendall(b"x")
            time.sleep(0.5)
        return answer(connection)

    return ask


def silent(client: httpx.Client, draw: random.Random) -> httpx.Response:
    """Asks again by the connection of a refused body, after about as long as a head may take."""
    typed(TOO_LONG, "image/png")(client, draw)
    time.sleep(PATIENCE * draw.uniform(0.95, 1.05))
    return raw(client, draw)


ASKED: dict[str, dict[str, Asking]] = {
    "good": {"form": form, "base64": texts, "bytes": raw},
    "hostile": {
        "100,000 x 100,000 pixels": typed(png(100_000, 100_000), "image/png"),
        "mutated files": lambda client, draw: form(client, draw, mutated, 20),
        "100 images": lambda client, draw: client.post("/predict", files=[("x", ("x", b"x"))] * 100),
        "9 MB": typed(TOO_LONG, "image/png"),
        "a gigabyte, announced": told(f"{HEAD}Content-Length: 1000000000\r\n\r\n".encode()),
        "no body": typed(b"", "image/png"),
        "broken JSON": typed(b'{"images": [', "application/json"),
        "nested JSON": typed(b"[" * 1_000_000, "application/json"),
        "JSON of lists": typed(b'{"images": [' + b"[]," * 2_000_000 + b"[]]}", "application/json"),
        "a form's long head": typed(
            b"--a\r\nb: " + b";" * 5_000_000 + b"\r\n\r\n\r\n--a--", "multipart/form-data; boundary=a"
        ),
        "broken base64": typed(b'{"images": ["http://127.0.0.1", "%%%"]}', "application/json"),
        "a form cut off": typed(b"--a\r\n\r\nx", "multipart/form-data; boundary=a"),
        "another type": typed(b"x", "text/plain"),
        "no HTTP": told(b"\x16\x03\x01 no HTTP\r\n\r\n"),
        "another token": lambda client, draw: client.post("/predict", headers={"authorization": "Bearer no"}),
        "gone": gone,
    },
    "slow": {
        "head": dripped(HEAD),
        "body": dripped(f"{HEAD}Content-Length: 1000\r\n\r\n"),
        "silent after a refusal": silent,
    },
}


class Soak:
    """Threads that ask while `asking` is set; `found` counts answers by what was asked, `wrong` are those with no reason."""

    def __init__(self, server: Served) -> None:
        self.server, self.found, self.wrong = server, Counter(), []
        self.asking, self.over = threading.Event(), threading.Event()
        self.busy = 0
        self._lock = threading.Lock()

    def ask(self, kind: str, seed: int) -> None:
        draw = random.Random(f"{kind} {seed}")
        base = {"base_url": self.server.client.base_url, "trust_env": False, "timeout": 120}
        with httpx.Client(headers={"authorization": f"Bearer {TOKEN}"}, **base) as client:
            while not self.over.is_set():
                if not self.asking.wait(0.2):
                    continue
                name = draw.choice(sorted(ASKED[kind]))
                with self._lock:
                    self.busy += 1
                try:
                    got = ASKED[kind][name](client, draw)
                    self.note(kind, name, got)
                except Exception as error:
                    self.wrong.append(f"{name}: {type(error).__name__}: {error}")
                finally:
                    with self._lock:
                        self.busy -= 1

    def note(self, kind: str, name: str, got: httpx.Response | bytes | None) -> None:
        if got is None:
            self.found[kind, name, "no answer is read"] += 1
            return
        status = got.status_code if isinstance(got, httpx.Response) else int(got.split()[1]) if got else 0
        text = got.text if isinstance(got, httpx.Response) else got.partition(b"\r\n\r\n")[2].decode()
        self.found[kind, name, status] += 1
        judged = status == 200 and '"predictions"' in text and (kind != "good" or '"error"' not in text)
        if not judged and not (status in ((503,) if kind == "good" else REFUSED) and text):
            self.wrong.append(f"{name}: {status} {text[:200]}")

    def quiet(self) -> tuple[float, float]:
        """The server's memory in MiB and its open files while nobody asks."""
        self.asking.clear()
        while self.busy:
            time.sleep(0.05)
        time.sleep(0.5)
        figures = self.server.figures()
        return figures["process_resident_memory_bytes"] / 2**20, figures["process_open_fds"]

    def full(self) -> float:
        """The share of good requests that were told to come again."""
        statuses = [(status, count) for (kind, _, status), count in self.found.items() if kind == "good"]
        return sum(count for status, count in statuses if status == 503) / max(1, sum(count for _, count in statuses))


def main(seconds: float) -> int:
    with tempfile.TemporaryDirectory() as place:
        run = judged_run.make(tiny_clip.make(Path(place)), "soaked", "zero_shot", detectors=["mcm", "knn"])
        with Served(run, *OPTIONS, token=TOKEN) as server:
            soak = Soak(server)
            kinds = ["good"] * GOOD + ["hostile"] * HOSTILE + ["slow"] * SLOW
            threads = [threading.Thread(target=soak.ask, args=(kind, seed)) for seed, kind in enumerate(kinds)]
            for each in threads:
                each.start()
            states = []
            for share in (1 / 6, 1 / 3, 1 / 3, 1 / 6):
                soak.asking.set()
                server_ended = server.process.poll()
                time.sleep(seconds * share)
                if server_ended is not None or server.process.poll() is not None:
                    break
                states.append(soak.quiet())
            soak.over.set()
            for each in threads:
                each.join()
            status = server.end()
            if server.told[-1:] != ["Stopped: what was asked is answered.\n"]:
                soak.wrong.append(f"the server said: {''.join(server.told[-20:])}")
    for (kind, name, answered), count in sorted(soak.found.items(), key=str):
        print(f"{kind:8} {name:25} {answered}: {count:,}")
    memory, files = zip(*states, strict=True) if len(states) == 4 else ([0.0, float("inf")],) * 2
    growth, opened, full = memory[-1] - memory[0], files[-1] - files[0], soak.full()
    print(f"{soak.found.total():,} requests in {seconds:g} s; memory {', '.join(f'{each:.0f}' for each in memory)} MiB")
    print(f"open files {opened:+.0f}  <= {len(kinds)}; good requests told to come again {full:.2%}  <= {MOST_FULL:.0%}")
    print(f"growth {growth:+.1f} MiB  <= {MOST_GROWTH}; exit status {status}; {len(soak.wrong)} without a reason")
    for each in soak.wrong[:10]:
        print(f"NOT ANSWERED: {each}")
    return int(bool(soak.wrong) or status != 0 or growth > MOST_GROWTH or opened > len(kinds) or full > MOST_FULL)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60))
