"""One file over HTTP: resumed where it broke off, whole or not there at all, checked against a published checksum."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from clip_ood.records import Count, Damaged, Record, Text, read_record

TRIES = 5  # in a row that bring nothing new
BLOCK = 1 << 20  # bytes read at a time
TIMEOUT = 60  # seconds without a byte


class DownloadError(ValueError):
    """A file that could not be had, or is not the one that was published."""


class _Again(OSError):
    """What was brought so far is of no use, or not all: worth another try."""


def download(
    url: str,
    path: Path,
    md5: str | None = None,
    announce: Callable[[int | None], None] = lambda total: None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
    pause: float = 1.0,
) -> None:
    """Brings `url` to `path`; bytes wait in `path`.part, from which a later call goes on.

    `announce` is told the size in bytes (None where the server does not say) before anything is written, `progress` how
    much is there; `pause` seconds, doubled each time, lie between tries.
    Raises: DownloadError for a file that the server does not have, does not send whole, or that has another checksum,
    and for a disk without room.
    """
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    farthest, fails, told = _size(part), 0, False

    def begin(total: int | None) -> None:
        nonlocal told
        _check_room(part, total)
        if not told:
            announce(total)
        told = True

    while True:
        try:
            _go_on(url, part, md5 is not None, begin, progress)
            break
        except (OSError, HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500 and error.code not in (408, 429):
                raise DownloadError(f"{url}: the server answers {error.code} {error.reason}") from error
            fails = 0 if _size(part) > farthest else fails + 1
            farthest = max(farthest, _size(part))
            if fails == TRIES:
                raise DownloadError(
                    f"{url}: given up after {TRIES} tries without progress ({error}). {_size(part):,} bytes are kept in "
                    f"{part}: run again to go on from there"
                ) from error
            time.sleep(min(pause * 2**fails, 60))
    if md5 is not None and (found := _md5(part)) != md5:
        _forget(part)
        raise DownloadError(
            f"{url}: the file has the MD5 checksum {found}, published is {md5}. It was removed; try again"
        )
    part.replace(path)
    _forget(part)


def _go_on(
    url: str,
    part: Path,
    checked: bool,
    begin: Callable[[int | None], None],
    progress: Callable[[int, int | None], None],
) -> None:
    """One connection: appends to `part` what it lacks, or writes it anew where the server sends the whole file."""
    known = _remembered(part)
    have = _size(part) if known else 0
    headers = {"User-Agent": "clip-ood", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if known["version"]:
            headers["If-Range"] = known["version"]  # another version is sent from its start
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if have == known["total"]:
            return
        _forget(part)
        raise _Again(f"the server has fewer than the {have:,} bytes that are here") from error
    with answer:
        start, total = _span(answer, have)
        if start and total != known["total"]:
            _forget(part)
            raise _Again(f"the file has {total} bytes now, it had {known['total']}")
        if total is None and not checked:
            raise DownloadError(
                f"{url}: the server does not say how large the file is, so a broken one would pass for whole"
            )
        begin(total)
        _remember(part, total, answer.headers.get("ETag") or answer.headers.get("Last-Modified"))
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            progress(start, total)
            while block := answer.read(BLOCK):
                file.write(block)
                progress(file.tell(), total)
    if total is not None and _size(part) < total:
        raise _Again(f"the connection broke off at {_size(part):,} of {total:,} bytes")
    if total is not None and _size(part) > total:
        _forget(part)
        raise _Again(f"the server sent more than the {total:,} bytes it had announced")


def _span(answer: HTTPResponse, have: int) -> tuple[int, int | None]:
    """The first byte that an answer holds, and the size of the whole file if the server tells it."""
    length = answer.headers.get("Content-Length")
    if answer.status != 206:
        return 0, int(length) if length and length.isdigit() else None
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
    if span is None or int(span[1]) != have:
        raise DownloadError(
            f"{answer.url}: asked for the bytes from {have} on, the server sends "
            f"{answer.headers.get('Content-Range') or 'some it does not name'}"
        )
    return have, int(span[2])


def _check_room(part: Path, total: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - _size(part) > free:
        raise DownloadError(f"{part.parent} has room for {free:,} bytes, and {total - _size(part):,} are to come")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


class Notes(Record):
    """What is kept of a server's answer beside the beginning of a file."""

    total: Count | None
    version: Text | None


def _remembered(part: Path) -> dict | None:
    """What the server said of the file that `part` is the beginning of."""
    try:
        return read_record(part.with_name(part.name + ".json"), Notes)
    except (FileNotFoundError, Damaged):  # killed while it was written
        return None


def _remember(part: Path, total: int | None, version: str | None) -> None:
    strong = None if version is None or version.startswith("W/") else version  # If-Range takes no weak ones
    notes = {"total": total, "version": strong}
    part.with_name(part.name + ".json").write_text(json.dumps(notes), encoding="utf-8")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_name(part.name + ".json").unlink(missing_ok=True)


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
