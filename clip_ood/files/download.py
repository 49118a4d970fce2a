"""Downloads one file over HTTP, resuming where an earlier call broke off.

The file is there as a whole or not at all, is of the type that its name says, and is checked against a checksum if one is known.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import time
import urllib.error
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from clip_ood.errors import UserError
from clip_ood.files.checksum import Checksum
from clip_ood.files.file_types import START, WrongType, check_start, check_type
from clip_ood.files.https import UnsafeRedirect, opened
from clip_ood.files.pace import Pace, TooSlow
from clip_ood.files.records import Count, Damaged, Record, Text, read_record

TRIES = 5  # tries in a row that bring nothing new
BLOCK = 1 << 20  # bytes read at a time
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DownloadError(UserError):
    """A file could not be downloaded, or is not the one that was published."""


class _Again(OSError):
    """What was downloaded so far is of no use, or incomplete: another try may succeed."""


def download(
    url: str,
    path: Path,
    checksum: Checksum | None = None,
    announce: Callable[[int | None], None] = lambda total: None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
    pause: float = 1.0,
    slowest: int = 0,
) -> None:
    """Downloads `url` to `path`; the bytes are kept in `path`.part, from which a later call continues.

    `announce` is told the size in bytes (None if the server does not say) before anything is written, and `progress` how
    much is there. Between tries, it waits `pause` seconds, doubled each time.
    Raises: DownloadError for a file that the server does not have, does not send whole, or sends with less than `slowest` bytes a second
    over a minute, that is empty, of another type or has
    another checksum, for an answer in its place (a login page), for a redirect away from HTTPS, and for a disk without room.
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
            _go_on(url, part, path.name, checksum is not None, begin, progress, slowest)
            break
        except TooSlow as error:
            raise DownloadError(
                f"{url}: the server sends less than {slowest:,} bytes a second. {_size(part):,} bytes are kept in {part}: run again to go on "
                "from there"
            ) from error
        except UnsafeRedirect as error:
            raise DownloadError(f"{url}: {error}: nothing was taken from there") from error
        except (OSError, HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500 and error.code not in (408, 429):
                raise DownloadError(f"{url}: the server answers {error.code} {error.reason}") from error
            if getattr(error, "errno", None) in NO_ROOM:
                raise DownloadError(
                    f"{part} cannot be written ({error.strerror}); {_size(part):,} bytes are kept: free some room, and run again to "
                    "go on from there"
                ) from error
            fails = 0 if _size(part) > farthest else fails + 1
            farthest = max(farthest, _size(part))
            if fails == TRIES:
                raise DownloadError(
                    f"{url}: given up after {TRIES} tries without progress ({error}). {_size(part):,} bytes are kept in "
                    f"{part}: run again to go on from there"
                ) from error
            time.sleep(min(pause * 2**fails, 60))
    try:
        check_type(part, path.name)
        if checksum is not None:
            checksum.check(part)
    except UserError as error:
        _forget(part)
        raise DownloadError(f"{url}: {error}. It was removed; try again") from error
    part.replace(path)
    _forget(part)


def _go_on(
    url: str,
    part: Path,
    name: str,
    checked: bool,
    begin: Callable[[int | None], None],
    progress: Callable[[int, int | None], None],
    slowest: int,
) -> None:
    """Makes one connection: it appends the missing bytes to `part`, or writes it anew if the server sends the whole file."""
    known = _remembered(part)
    have = _size(part) if known and (checked or known["version"]) else 0  # without a version, the file may have changed
    headers = {"User-Agent": "clip-ood", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if _is_strong(known["version"]):
            headers["If-Range"] = known["version"]  # the server sends another version from its start
    try:
        answer = opened(url, headers)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if have == known["total"]:
            return
        _forget(part)
        raise _Again(f"the server has fewer than the {have:,} bytes that are here") from error
    with answer:
        start, total = _span(answer, have)
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if start and (total, version) != (known["total"], known["version"]):
            _forget(part)
            raise _Again("the file has changed at the server")
        pace = Pace(slowest)  # from when the server begins to answer
        first = _block(answer, pace)
        if not start:
            _check_answer(url, answer, first, total, name, checked)
        begin(total)
        _remember(part, total, version)
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            progress(start, total)
            while first:
                file.write(first)
                progress(file.tell(), total)
                first = _block(answer, pace)
    if total is not None and _size(part) < total:
        raise _Again(f"the connection broke off at {_size(part):,} of {total:,} bytes")
    if total is not None and _size(part) > total:
        _forget(part)
        raise _Again(f"the server sent more than the {total:,} bytes it had announced")


def _block(answer: HTTPResponse, pace: Pace) -> bytes:
    """Returns the next bytes of an answer, which are fewer than a block only at its end. Raises: TooSlow."""
    content = bytearray()
    while len(content) < BLOCK and (more := answer.read1(BLOCK - len(content))):
        content += more
        pace.add(len(more))
    return bytes(content)


def _check_answer(url: str, answer: HTTPResponse, first: bytes, total: int | None, name: str, checked: bool) -> None:
    """Raises DownloadError for an answer that is not the file, before it overwrites anything that is kept."""
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError(f"{url}: the server sends the file in another encoding than it was asked for")
    if total is not None and len(first) < min(START, total):
        return  # the connection broke off: these bytes are too few to tell the type
    try:
        check_start(first[:START], name)
    except WrongType as error:
        raise DownloadError(
            f"{url}: what the server sent is not the file: {error}. A login, a used-up quota or a network's own page answers so: "
            "open the address in a browser, and try again later"
        ) from error
    if total is None and not checked:
        raise DownloadError(
            f"{url}: the server does not say how large the file is, so a broken one would pass for whole"
        )


def _span(answer: HTTPResponse, have: int) -> tuple[int, int | None]:
    """Returns the first byte that an answer holds, and the size of the whole file if the server tells it."""
    length = answer.headers.get("Content-Length")
    if answer.status != 206:
        return 0, int(length) if length and length.isdigit() else None
    span = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d{1,18})", answer.headers.get("Content-Range", ""))
    if span is None or int(span[1]) != have:
        raise DownloadError(
            f"{answer.url.partition('?')[0]}: asked for the bytes from {have} on, the server sends "
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
    """The part of a server's answer that is kept beside the beginning of a file."""

    total: Count | None
    version: Text | None


def _remembered(part: Path) -> dict | None:
    """Returns what the server said of the file whose beginning is `part`."""
    try:
        return read_record(part.with_name(part.name + ".json"), Notes)
    except (FileNotFoundError, Damaged):  # a process was killed while it wrote the file
        return None


def _remember(part: Path, total: int | None, version: str | None) -> None:
    notes = {"total": total, "version": version}
    part.with_name(part.name + ".json").write_text(json.dumps(notes), encoding="utf-8")


def _is_strong(version: str | None) -> bool:
    return version is not None and not version.startswith("W/")  # If-Range takes no weak versions


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_name(part.name + ".json").unlink(missing_ok=True)
