"""A member of an archive of images: its name, where its bytes lie, and why they cannot be read."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from clip_ood.data.readers.on_disk import Place
from clip_ood.errors import UserError
from clip_ood.files.regular_file import special

DRIVE = re.compile(r"[A-Za-z]:[\\/]")  # of Windows


class DamagedArchive(UserError):
    """A file is no whole archive of the kind that its name says; the message says where and why."""


class Member(NamedTuple):
    """A file or folder in an archive; `place` is None for a folder, and where there is a `fault`."""

    name: str
    place: Place | None = None
    fault: str | None = None
    is_folder: bool = False


def opened(path: Path) -> BinaryIO:
    """Opens an archive. Raises: DamagedArchive for anything but a file (reading a pipe would wait forever), OSError."""
    if (kind := special(path)) is not None:
        raise DamagedArchive(f"it is {kind}, and no file")
    return path.open("rb")


def leads_out(name: str) -> bool:
    """Says whether a member's name would lead out of the folder that its archive is unpacked to.

    >>> [leads_out(name) for name in ("a/b.png", "./b.png", "../b.png", "/b.png", "C:\\\\b.png")]
    [False, False, True, True, True]
    """
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or DRIVE.match(name) is not None
