"""A process of `clip-ood serve`, and clients of it: httpx, and bare sockets for what no client of good will sends."""

from __future__ import annotations

import queue
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import forked
import httpx
from odd_pictures import chunk
from prometheus_client.parser import text_string_to_metric_families

TOKEN = "a secret"
PATIENCE = 1.5
MOST = {"bytes": 200_000, "images": 12, "pixels": 250_000, "connections": 60}
OPTIONS = ("--token", TOKEN, f"--patience={PATIENCE}", *(f"--max-{name}={most}" for name, most in MOST.items()))
HEAD = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: image/png\r\n"


class Served:
    """A server of a run, in a process of its own; it ends with the block."""

    def __init__(self, run: Path, *options: Any, token: str | None = None, ready: bool = True) -> None:
        command = [sys.executable, "-m", "clip_ood", "serve", "--run", run, *options]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = forked.Popen(list(map(str, command)), **streams)
        self.told: list[str] = []  # on standard error
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        self.first = self.process.stdout.readline()
        found = re.search(r" at (http://[^ ]+):(\d+)/predict", self.first)
        assert found, (self.first, self.process.wait(60), self.told)
        self.port = int(found[2])
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=60, trust_env=False
        )
        if ready:
            self.heard("Ready: ")

    def _read(self) -> None:
        for line in self.process.stderr:
            self.told.append(line)
            self._lines.put(line)

    def heard(self, words: str, seconds: float = 60) -> str:
        """The next line on standard error that has some words."""
        until = time.monotonic() + seconds
        while True:
            line = self._lines.get(timeout=max(0.01, until - time.monotonic()))
            if words in line:
                return line

    def post(self, **content: Any) -> httpx.Response:
        return self.client.post("/predict", **content)

    def files(self, paths: list[Path]) -> httpx.Response:
        return self.post(files=[("images", (path.name, path.read_bytes())) for path in paths])

    def figures(self) -> dict[str, float]:
        """The figures by name and labels, as Prometheus reads them."""
        text = self.client.get("/metrics").text
        samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
        return {" ".join([each.name, *each.labels.values()]): each.value for each in samples}

    def bare(self, content: bytes) -> socket.socket:
        """A connection on which some bytes were sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.sendall(content)
        return connection

    def end(self) -> int:
        """Asks the server to end, and returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()
        try:
            self.end()
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def answer(connection: socket.socket) -> bytes:
    """All that a server sends until it closes a connection."""
    found = b""
    with connection:
        while chunk := connection.recv(65536):
            found += chunk
    return found


def reason(response: httpx.Response) -> str:
    return response.json()["error"]


def png(width: int, height: int) -> bytes:
    """A PNG file that says that it has so many pixels, and holds none."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
