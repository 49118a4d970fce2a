"""Compares a file's first bytes with the type that its name says: a login page is no archive, whatever status it was sent with."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

from clip_ood.errors import UserError

START = tarfile.BLOCKSIZE  # bytes that tell the type
PAGES = (b"<!doctype", b"<html", b"<head", b"<body", b"<script", b"<?xml", b"<!--", b"<meta", b"<title")


class WrongType(UserError):
    """A file is empty, or not of the type that its name says; the message says what it is."""


def _begins(*marks: bytes) -> Callable[[bytes], bool]:
    return lambda start: start.startswith(marks)


def _is_tar(start: bytes) -> bool:
    """Says whether the checksum of a tar header is right."""
    try:
        tarfile.TarInfo.frombuf(start[:START], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


TORCH = ("checkpoint of torch", _begins(b"PK\x03\x04", b"\x80"))
GZIP = ("gzip file", _begins(b"\x1f\x8b"))
TYPES: dict[str, tuple[str, Callable[[bytes], bool]]] = {  # by the end of a name: what it is called, and how it begins
    ".pth.tar": TORCH,  # is no tar file in spite of its name
    ".tgz": GZIP,
    ".gz": GZIP,
    ".tar": ("tar file", _is_tar),
    ".zip": ("zip file", _begins(b"PK\x03\x04")),
    ".mat": ("MATLAB file", _begins(b"MATLAB ")),
    ".parquet": ("parquet file", _begins(b"PAR1")),
    ".jpg": ("JPEG file", _begins(b"\xff\xd8\xff")),
    ".png": ("PNG file", _begins(b"\x89PNG\r\n\x1a\n")),
    ".safetensors": ("safetensors file", lambda start: start[8:9] == b"{"),
    ".pt": TORCH,
    ".pth": TORCH,
}


def check_start(start: bytes, name: str) -> None:
    """Compares the first `START` bytes of a file (or all of a shorter one) with its name.

    A file of an unknown type may be anything but a web page.

    Raises: WrongType.

    >>> check_start(b"<!DOCTYPE html><title>Quota exceeded</title>", "photos.tar.gz")
    Traceback (most recent call last):
    clip_ood.files.file_types.WrongType: it is a web page, and no gzip file
    """
    if not start:
        raise WrongType("it is empty")
    known = (kind for end, kind in TYPES.items() if name.lower().endswith(end))
    called, fits = next(known, ("data", lambda start: True))
    if start.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(PAGES):
        raise WrongType(f"it is a web page, and no {called}")
    if not fits(start):
        raise WrongType(f"it is no {called}: it begins with {start[:8]!r}")


def check_type(path: Path, name: str | None = None) -> None:
    """Checks a file as `check_start` does, under its own name or another."""
    with path.open("rb") as file:
        check_start(file.read(START), name or path.name)
