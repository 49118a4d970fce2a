"""Downloads from a server that breaks off, lies about the size or serves something else."""

from __future__ import annotations

import hashlib
import re
import urllib.request
from functools import partial
from http.client import HTTPMessage

import pytest
from archives import tarred
from bad_server import CONTENT, MD5, PAGE, PUBLISHED, Handler

from clip_ood.files import download as downloads
from clip_ood.files import https
from clip_ood.files.download import DownloadError, download


def fetched(server, folder, checksum=PUBLISHED, **more):
    download(server.url, folder / "set.bin", checksum, pause=0, **more)
    assert sorted(path.name for path in folder.iterdir()) == ["set.bin"]  # no notes, no part
    return (folder / "set.bin").read_bytes()


# Broken off, and taken up again


@pytest.mark.parametrize("checksum", [PUBLISHED, None])
def test_a_whole_file_and_its_size_before_its_first_byte(checksum, server, tmp_path):
    said = []
    fetched(
        server,
        tmp_path,
        checksum,
        announce=lambda total: said.append(total),
        progress=lambda done, _: said.append(done),
    )
    assert said[:2] == [100_000, 0] and said[-1] == 100_000 and said.count(100_000) == 2
    assert (tmp_path / "set.bin").read_bytes() == CONTENT and server.asked == [None]


@pytest.mark.parametrize("checksum", [PUBLISHED, None])
def test_a_connection_that_breaks_off_is_taken_up_where_it_broke(checksum, server, tmp_path):
    server.breaks_after = 30_000
    assert fetched(server, tmp_path, checksum) == CONTENT
    assert server.asked == [None, "bytes=30000-", "bytes=60000-", "bytes=90000-"]


def test_a_later_call_goes_on_from_what_is_kept(server, tmp_path, monkeypatch):
    server.breaks_after, server.ranges = 30_000, False  # never gets farther
    with pytest.raises(DownloadError, match=r"given up after 5 tries.*30,000 of 100,000.*30,000 bytes are kept"):
        download(server.url, tmp_path / "set.bin", PUBLISHED, pause=0)
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


@pytest.mark.parametrize("checksum", [PUBLISHED, None])
@pytest.mark.parametrize("etags", [('W/"1"', 'W/"2"'), (None, '"2"'), (None, None)])
def test_versions_of_one_size_are_not_stitched_together_either(etags, checksum, server, tmp_path):
    server.breaks_after, server.ranges, server.etag = 30_000, False, etags[0]
    server.content = CONTENT[::-1]
    with pytest.raises(DownloadError, match="given up"):
        download(server.url, tmp_path / "set.bin", checksum, pause=0)
    server.content, server.breaks_after, server.ranges, server.etag = CONTENT, None, True, etags[1]
    if checksum and etags == (None, None):  # nothing but the checksum tells
        with pytest.raises(DownloadError, match="MD5"):
            download(server.url, tmp_path / "set.bin", checksum, pause=0)
    assert fetched(server, tmp_path, checksum) == CONTENT


def test_a_part_whose_notes_are_lost_is_not_trusted(server, tmp_path):
    (tmp_path / "set.bin.part").write_bytes(b"x" * 500)
    assert fetched(server, tmp_path, None) == CONTENT and server.asked == [None]


# Other sizes, bytes and answers than announced


def test_a_server_that_announces_more_than_it_has(server, tmp_path):
    server.announces = 120_000
    with pytest.raises(DownloadError, match="given up after 5 tries"):
        download(server.url, tmp_path / "set.bin", PUBLISHED, pause=0)
    assert not (tmp_path / "set.bin").exists()


def test_a_server_that_announces_less_than_it_has(server, tmp_path):
    server.announces = 80_000
    with pytest.raises(DownloadError, match=f"MD5 checksum {hashlib.md5(CONTENT[:80_000]).hexdigest()}, .* {MD5}"):
        download(server.url, tmp_path / "set.bin", PUBLISHED, pause=0)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(DownloadError, match=f"set.bin: .*MD5 .* published is {MD5}.*removed"):
        download(server.url, tmp_path / "set.bin", PUBLISHED, pause=0)
    assert list(tmp_path.iterdir()) == []


def test_a_range_that_begins_elsewhere_is_refused(server, tmp_path):
    server.breaks_after, server.shift = 30_000, 5
    with pytest.raises(DownloadError, match=r"asked for the bytes from 30000 on, the server sends bytes 30005-"):
        download(server.url, tmp_path / "set.bin", None, pause=0)


def test_a_file_of_unknown_size_needs_a_checksum(server, tmp_path):
    server.announces = -1
    with pytest.raises(DownloadError, match="does not say how large"):
        download(server.url, tmp_path / "set.bin", None, pause=0)
    assert fetched(server, tmp_path, PUBLISHED) == CONTENT


def test_a_file_that_is_not_there_is_not_asked_for_again(server, tmp_path):
    server.status = 404
    with pytest.raises(DownloadError, match=r"set\.bin: the server answers 404 Not Found"):
        download(server.url, tmp_path / "set.bin", PUBLISHED, pause=0)
    assert len(server.asked) == 1


def test_a_disk_without_room_is_told_before_anything_is_written(server, tmp_path, monkeypatch):
    full = type("Usage", (), {"free": 99_999})
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda folder: full)
    with pytest.raises(DownloadError, match=r"room for 99,999 bytes, and 100,000 are to come"):
        download(server.url, tmp_path / "set.bin", PUBLISHED, pause=0)
    assert list(tmp_path.iterdir()) == []


# Something else in place of the file


OTHER = {  # what a server sends with status 200: the file's name, and what is said of it
    "a page": (PAGE, "set.tar.gz", "it is a web page, and no gzip file"),
    "a page with a mark": (b"\xef\xbb\xbf\n <HTML>log in</HTML>", "set.tar.gz", "it is a web page, and no gzip file"),
    "a page for data of any kind": (PAGE, "set.bin", "it is a web page, and no data"),
    "xml": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "set.zip", "it is a web page, and no zip file"),
    "json": (b'{"error": "quota"}', "set.zip", "it is no zip file: it begins with"),
    "text": (b"Too many requests", "set.mat", "it is no MATLAB file"),
    "an unpacked tar": (bytes(10_240), "set.tar.gz", "it is no gzip file"),
    "zeros": (bytes(10_240), "set.tar", "it is no tar file"),
    "a page as a picture": (PAGE, "set.jpg", "it is a web page, and no JPEG file"),
    "a page as a table": (PAGE, "set.parquet", "it is a web page, and no parquet file"),
    "nothing": (b"", "set.tar.gz", "it is empty"),
    "nothing of any kind": (b"", "set.bin", "it is empty"),
}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("kind", OTHER)
def test_what_is_not_the_file_never_becomes_it(kind, known, server, tmp_path):
    server.content, name, said = OTHER[kind]
    with pytest.raises(DownloadError, match=re.escape(said)) as error:
        download(server.url, tmp_path / name, PUBLISHED if known else None, pause=0)
    assert server.url in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [] and len(server.asked) == 1


def test_a_page_of_unknown_size_is_called_a_page(server, tmp_path):
    server.content, server.announces = PAGE, -1
    with pytest.raises(DownloadError, match="it is a web page"):
        download(server.url, tmp_path / "set.tar.gz", None, pause=0)


def test_a_page_does_not_cost_what_is_there_of_the_file(server, tmp_path):
    whole = tarred(tmp_path / "source.tar.gz", ("x", CONTENT)).read_bytes()
    server.content, server.breaks_after, server.ranges = whole, 30_000, False
    with pytest.raises(DownloadError, match="given up"):
        download(server.url, tmp_path / "set.tar.gz", None, pause=0)
    server.content, server.breaks_after, server.etag = PAGE, None, '"page"'
    with pytest.raises(DownloadError, match="web page"):
        download(server.url, tmp_path / "set.tar.gz", None, pause=0)
    server.content, server.ranges, server.etag, server.asked = whole, True, '"1"', []
    download(server.url, tmp_path / "set.tar.gz", None, pause=0)
    assert (tmp_path / "set.tar.gz").read_bytes() == whole and server.asked == ["bytes=30000-"]


def test_a_file_in_another_encoding_is_refused(server, tmp_path):
    server.headers = {"Content-Encoding": "gzip"}
    with pytest.raises(DownloadError, match="in another encoding"):
        download(server.url, tmp_path / "set.bin", None, pause=0)


# Redirects


@pytest.mark.parametrize(
    "start, goes_to, allowed",
    [
        ("https://a.org/x", "http://b.org/x", False),
        ("https://a.org/x", "ftp://b.org/x", False),
        ("http://a.org/x", "ftp://b.org/x", False),
        ("http://a.org/x", "https://b.org/x", True),
        ("https://a.org/x", "https://b.org/x", True),
        ("http://a.org/x", "http://b.org/x", True),
    ],
)
def test_a_redirect_never_leaves_https(start, goes_to, allowed):
    request = urllib.request.Request(start)
    redirected = partial(https._Redirects().redirect_request, request, None, 302, "Found", HTTPMessage(), goes_to)
    if allowed:
        assert redirected().full_url == goes_to
        return
    with pytest.raises(https.UnsafeRedirect, match=re.escape(goes_to)):
        redirected()


def test_the_query_of_a_redirect_which_may_be_a_signature_is_not_told(server, tmp_path):
    server.goes_to = "ftp://example.org/set.bin?hdnts=S3CR3T"
    with pytest.raises(DownloadError, match=r"sends on to ftp://example\.org/set\.bin, ") as error:
        download(server.url, tmp_path / "set.bin", None, pause=0)
    assert "S3CR3T" not in str(error.value)

    class Answer:
        status, url, headers = 206, f"{server.url}?hdnts=S3CR3T", {}

    with pytest.raises(DownloadError, match=r"/set\.bin: asked for the bytes from 5 on") as error:
        downloads._span(Answer, 5)
    assert "S3CR3T" not in str(error.value)


def test_a_redirect_to_no_web_address_is_an_error_of_one_line(server, tmp_path):
    server.goes_to = "ftp://example.org/set.bin"
    with pytest.raises(DownloadError, match=r"the server sends on to ftp://example\.org/set\.bin, .*nothing was taken"):
        download(server.url, tmp_path / "set.bin", None, pause=0)
    assert list(tmp_path.iterdir()) == []
