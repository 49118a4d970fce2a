"""Servers of this machine in the place of those that images lie on: one that answers as S3 does, and one of the web, with faults."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager, suppress
from email.utils import formatdate
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from clip_ood.data import bucket_tree
from clip_ood.files.remote import fetched, file_systems, listing, patience
from clip_ood.files.remote.fetched import local

BUCKET = "photos"
ANIMALS = {f"{label}/{k}.png": k for k, label in enumerate(["cat", "cat", "dog", "dog", "big fox"])}  # images by name


class S3:
    """moto's server with a bucket; `put` fills it."""

    def __init__(self, url: str) -> None:
        import boto3

        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        self.url, self.client = url, boto3.client("s3", endpoint_url=url, **keys)
        self.client.create_bucket(Bucket=BUCKET)

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def put_folder(self, folder: Path, prefix: str) -> str:
        """Puts the files of a folder below a prefix, and returns their address."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"s3://{BUCKET}/{prefix}"

    def remove(self, key: str) -> None:
        self.client.delete_object(Bucket=BUCKET, Key=key)


@contextmanager
def s3_server():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    file_systems._made.cache_clear()  # which knows the server of an earlier test file of this process
    try:
        yield S3("http://{}:{}".format(*server.get_host_and_port()))
    finally:
        server.stop()


def asked_of(server: S3, cache: Path, monkeypatch) -> None:
    """Has s3:// mean a server of ours, with credentials that it knows, an empty `cache`, short pauses, and nothing listed yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "ENDPOINT_URL": server.url}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(patience, "PAUSE", 0.001)
    for each in (bucket_tree._listed, listing.kind, fetched._fetched):
        each.cache_clear()


class Web(ThreadingHTTPServer):
    """Serves a folder, with pages of links. `fails` has, by path, how often and with which status it fails first; `asked` counts GETs.

    `short` are paths of which only a half is sent, `silent` those that are never answered, `signed` those that want this query; `endless` those that
    say no size and never end, `trickling` those that send a byte now and then.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.fails: dict[str, list[int]] = {}
        self.short, self.silent, self.endless, self.signed = set(), set(), set(), {}
        self.trickling = set()
        self.asked, self.released = Counter(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(SimpleHTTPRequestHandler):
    def do_HEAD(self):
        if self.path in self.server.endless:
            self.send_response(200)
            self.end_headers()
        elif not self._fails():
            super().do_HEAD()

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.asked[path] += 1
        if self._fails():
            return
        if path in self.server.endless:
            self.do_HEAD()
            with suppress(OSError):
                while not self.server.released.is_set():
                    self.wfile.write(bytes(1 << 16))
            self.close_connection = True
        elif path in self.server.trickling:
            self.do_HEAD()
            with suppress(OSError):
                while not self.server.released.wait(0.02):
                    self.wfile.write(b"P")
            self.close_connection = True
        elif path in self.server.short:
            content = Path(self.translate_path(path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        else:
            super().do_GET()

    def _fails(self) -> bool:
        path, _, query = self.path.partition("?")
        if path in self.server.silent:
            self.server.released.wait(30)
            return True
        if query != self.server.signed.get(path, query):
            self.send_error(403)
            return True
        if left := self.server.fails.get(path):
            self.send_response(left.pop())
            self.send_header("Content-Length", "0")
            self.end_headers()
            return True
        return False

    def end_headers(self):
        self.send_header("Date", formatdate())
        super().end_headers()

    def log_message(self, *_):
        pass


@contextmanager
def web_server(folder: Path):
    server = Web(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()


def fetched_in_a_worker(address):
    return local(address).read_bytes()


def read_in_a_worker(place):
    return place.read()


def contents(images) -> list[bytes]:
    return [images.content(row) for row in range(len(images))]
