"""Servers that break off, lie, or send something else, at a first download and at one that goes on: the set is right or not there."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from unittest.mock import patch

from archives import tarred
from bad_server import Server

from clip_ood.config.sets import Entry, File
from clip_ood.data.catalog.get import get
from clip_ood.files import download as downloading
from clip_ood.files.download import DownloadError, download
from faults.trial import Trial

PICTURE = Random(0).randbytes(200_000)
PAGE = b"<!DOCTYPE html><html><title>Log in</title></html>"
LARGER = b"x" * 500_000


def _sends(content: bytes) -> Callable[[Server], None]:
    return lambda server: setattr(server, "content", content)


def _has(**faults: object) -> Callable[[Server], None]:
    return lambda server: [setattr(server, name, value) for name, value in faults.items()]


FAULTS: dict[str, Callable[[Server], None]] = {
    "sends nothing": _sends(b""),
    "sends a page": _sends(PAGE),
    "sends a long page": _sends(PAGE + b" " * 300_000),
    "sends zeros": _sends(bytes(200_000)),
    "sends text": _sends(b"Too many requests. " * 100),
    "sends another archive": lambda server: setattr(server, "content", server.content[:12] + LARGER),
    **{f"breaks off after {share:.0%}": partial(lambda share, server: setattr(server, "breaks_after", int(share * len(server.content))), share) for share in (0, 0.001, 0.3, 0.9)},
    "breaks off, and knows no ranges": _has(breaks_after=70_000, ranges=False),
    "says no length": _has(announces=-1),
    "says no length, and breaks off": _has(announces=-1, breaks_after=70_000),
    "says length 0": _has(announces=0),
    "says too short a length": _has(announces=100_000),
    "sends it cut off as if it were whole": lambda server: setattr(server, "content", server.content[:-100_000]),
    "says too long a length": _has(announces=300_000),
    "knows no ranges": _has(ranges=False),
    "begins ranges elsewhere": _has(shift=7, breaks_after=70_000),
    "has a new version": lambda server: (_sends(server.content[::-1])(server), _has(etag='"2"')(server)),
    "has a new version, and says no version": lambda server: (_sends(server.content[::-1])(server), _has(etag=None)(server)),
    "has a new version under a weak name": lambda server: (_sends(server.content[::-1])(server), _has(etag='W/"2"')(server)),
    "sends it compressed once more": _has(headers={"Content-Encoding": "gzip"}),
    "redirects to no web address": _has(goes_to="ftp://127.0.0.1/x"),
    "redirects to a file": _has(goes_to="file:///etc/hostname"),
    **{f"answers {status}": _has(status=status) for status in (401, 403, 404, 429, 500, 503)},
}  # fmt: skip


@contextmanager
def _served(content: bytes) -> Iterator[Server]:
    server = Server(content)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def _entry(server: Server, checksum: str | None) -> Entry:
    return Entry("Photos", "", "", "", {}, files=(File(f"{server.url}.tar.gz", gives="photos", md5=checksum),))


@patch.object(downloading.time, "sleep", lambda seconds: None)
@patch.object(downloading, "BLOCK", 10_000)
def _try(fault: str, published: bool, begun: bool, folder: Path) -> None:
    whole = tarred(folder / "whole.tar.gz", ("photos/0.jpg", PICTURE)).read_bytes()
    root = folder / "data"
    with _served(whole) as server:
        entry = _entry(server, hashlib.md5(whole).hexdigest() if published else None)
        if begun:
            server.breaks_after, server.ranges = 50_000, False
            try:
                download(entry.files[0].url, root / entry.files[0].name, pause=0)
            except DownloadError as error:
                assert "given up" in str(error), error
            server.breaks_after, server.ranges = None, True
        FAULTS[fault](server)
        try:
            get(entry, root)
        except ValueError as error:
            assert "\n" not in str(error) and entry.files[0].name in str(error), error
            assert not (root / "photos").exists()
        else:
            assert (root / "photos" / "0.jpg").read_bytes() == PICTURE
            return
    with _served(whole) as server:
        get(_entry(server, hashlib.md5(whole).hexdigest() if published else None), root)  # what is kept does no harm
        assert (root / "photos" / "0.jpg").read_bytes() == PICTURE


SAMPLE = ("sends a page", "breaks off after 30%", "has a new version, and says no version")


def trials() -> list[Trial]:
    return [
        Trial(
            f"{'goes on' if begun else 'begins'} where a server {fault}, {'with' if published else 'without'} a checksum",
            partial(_try, fault, published, begun),
            sample=begun and not published and fault in SAMPLE,
        )
        for fault in FAULTS
        for published in (True, False)
        for begun in (False, True)
    ]
