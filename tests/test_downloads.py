"""Downloads from a server that breaks off, lies about the size or serves something else."""

from __future__ import annotations

import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from archives import tarred

from configs.errors import ConfigError
from datamodules.catalog import download as downloads
from datamodules.catalog.download import DownloadError, download
from datamodules.catalog.entries import Entry, File, Split
from datamodules.catalog.get import get

CONTENT = np.random.default_rng(0).bytes(100_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content`, with these faults: `breaks_after` bytes it closes (each time); `announces` is the size it claims;
    `ranges` False ignores Range; `shift` starts a range elsewhere; `status` answers an error."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.asked = CONTENT, '"1"', []
        self.breaks_after = self.announces = self.status = None
        self.ranges, self.shift = True, 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/set.bin"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        if server.status:
            return self.send_error(server.status)
        start, total = 0, server.announces or len(server.content)
        same = self.headers.get("If-Range") in (None, server.etag)
        if asked and server.ranges and same:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(server.content):
                return self.send_error(416)
            start += server.shift
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        if total > 0:
            self.send_header("Content-Length", str(total - start))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        self.wfile.write(server.content[start:][: server.breaks_after])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads, "BLOCK", 1000)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def fetched(server, folder, md5=MD5, **more):
    download(server.url, folder / "set.bin", md5, pause=0, **more)
    assert sorted(path.name for path in folder.iterdir()) == ["set.bin"]  # no notes, no part
    return (folder / "set.bin").read_bytes()


@pytest.mark.parametrize("md5", [MD5, None])
def test_a_whole_file_and_its_size_before_its_first_byte(md5, server, tmp_path):
    said = []
    fetched(
        server, tmp_path, md5, announce=lambda total: said.append(total), progress=lambda done, _: said.append(done)
    )
    assert said[:2] == [100_000, 0] and said[-1] == 100_000 and said.count(100_000) == 2
    assert (tmp_path / "set.bin").read_bytes() == CONTENT and server.asked == [None]


@pytest.mark.parametrize("md5", [MD5, None])
def test_a_connection_that_breaks_off_is_taken_up_where_it_broke(md5, server, tmp_path):
    server.breaks_after = 30_000
    assert fetched(server, tmp_path, md5) == CONTENT
    assert server.asked == [None, "bytes=30000-", "bytes=60000-", "bytes=90000-"]


def test_a_later_call_goes_on_from_what_is_kept(server, tmp_path, monkeypatch):
    server.breaks_after, server.ranges = 30_000, False  # never gets farther
    with pytest.raises(DownloadError, match=r"given up after 5 tries.*30,000 of 100,000.*30,000 bytes are kept"):
        download(server.url, tmp_path / "set.bin", MD5, pause=0)
    assert not (tmp_path / "set.bin").exists()
    server.breaks_after, server.ranges, server.asked = None, True, []
    assert fetched(server, tmp_path) == CONTENT and server.asked == ["bytes=30000-"]


def test_without_ranges_the_file_is_begun_anew(server, tmp_path):
    server.breaks_after, server.ranges = 30_000, False
    tried = iter([30_000, 60_000, None])
    send = Handler.do_GET

    class Improving(Handler):
        def do_GET(self):
            self.server.breaks_after = next(tried)
            send(self)

    server.RequestHandlerClass = Improving
    assert fetched(server, tmp_path) == CONTENT


@pytest.mark.parametrize("etag", ['"2"', None])
def test_two_versions_are_never_stitched_together(etag, server, tmp_path):
    server.breaks_after, server.ranges = 30_000, False
    with pytest.raises(DownloadError, match="given up"):
        download(server.url, tmp_path / "set.bin", None, pause=0)
    server.content, server.breaks_after, server.ranges = CONTENT[::-1] + b"more", None, True
    server.etag = etag  # without one, the other size tells
    assert fetched(server, tmp_path, None) == server.content


def test_a_part_whose_notes_are_lost_is_not_trusted(server, tmp_path):
    (tmp_path / "set.bin.part").write_bytes(b"x" * 500)
    assert fetched(server, tmp_path, None) == CONTENT and server.asked == [None]


def test_a_server_that_announces_more_than_it_has(server, tmp_path):
    server.announces = 120_000
    with pytest.raises(DownloadError, match="given up after 5 tries"):
        download(server.url, tmp_path / "set.bin", MD5, pause=0)
    assert not (tmp_path / "set.bin").exists()


def test_a_server_that_announces_less_than_it_has(server, tmp_path):
    server.announces = 80_000
    with pytest.raises(DownloadError, match=f"MD5 checksum {hashlib.md5(CONTENT[:80_000]).hexdigest()}, .* {MD5}"):
        download(server.url, tmp_path / "set.bin", MD5, pause=0)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(DownloadError, match=f"set.bin: .*MD5 .* published is {MD5}.*removed"):
        download(server.url, tmp_path / "set.bin", MD5, pause=0)
    assert list(tmp_path.iterdir()) == []


def test_a_range_that_begins_elsewhere_is_refused(server, tmp_path):
    server.breaks_after, server.shift = 30_000, 5
    with pytest.raises(DownloadError, match=r"asked for the bytes from 30000 on, the server sends bytes 30005-"):
        download(server.url, tmp_path / "set.bin", None, pause=0)


def test_a_file_of_unknown_size_needs_a_checksum(server, tmp_path):
    server.announces = -1
    with pytest.raises(DownloadError, match="does not say how large"):
        download(server.url, tmp_path / "set.bin", None, pause=0)
    assert fetched(server, tmp_path, MD5) == CONTENT


def test_a_file_that_is_not_there_is_not_asked_for_again(server, tmp_path):
    server.status = 404
    with pytest.raises(DownloadError, match=r"set\.bin: the server answers 404 Not Found"):
        download(server.url, tmp_path / "set.bin", MD5, pause=0)
    assert len(server.asked) == 1


def test_a_disk_without_room_is_told_before_anything_is_written(server, tmp_path, monkeypatch):
    full = type("Usage", (), {"free": 99_999})
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda folder: full)
    with pytest.raises(DownloadError, match=r"room for 99,999 bytes, and 100,000 are to come"):
        download(server.url, tmp_path / "set.bin", MD5, pause=0)
    assert list(tmp_path.iterdir()) == []


# Downloaded, unpacked and counted


def a_set(server, images):
    files = (File(f"{server.url}.tar.gz", gives="photos", md5=hashlib.md5(server.content).hexdigest()),)
    return Entry(
        "Photos", "photos", "free", "example.org", {"test": Split(images, [{"folder": "photos"}])}, files=files
    )


@pytest.fixture
def photos(server, tmp_path):
    members = [(f"photos/{index}.jpg", CONTENT[:900]) for index in range(3)]
    server.content = tarred(tmp_path / "source.tar.gz", *members).read_bytes()
    return server


def test_a_set_is_downloaded_unpacked_and_counted(photos, tmp_path, monkeypatch, capsys):
    entry = a_set(photos, 3)
    monkeypatch.setattr("configs.checks.entry", lambda name: entry)
    get(entry, tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["photos"]
    said = capsys.readouterr().out
    assert re.search(r"set\.bin\.tar\.gz: .* (bytes|kB) from http.* to .*data", said) and "test: 3 images" in said
    get(entry, tmp_path / "data")
    assert "is there already" in capsys.readouterr().out and len(photos.asked) == 1


def test_another_number_of_images_than_published_is_an_error(photos, tmp_path, monkeypatch):
    entry = a_set(photos, 4)
    monkeypatch.setattr("configs.checks.entry", lambda name: entry)
    with pytest.raises(ConfigError, match="Photos: test has 3 images, published are 4"):
        get(entry, tmp_path / "data")
