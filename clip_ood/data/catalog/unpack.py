"""Unpacks archives from elsewhere beside their place and moves the result there when it is whole.

Nothing in an archive may be written outside its folder or fill the disk.
"""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from clip_ood.data.allowance import Allowance, UnsafeArchive
from clip_ood.data.catalog.archives import BLOCK, Member, in_tar, in_zip
from clip_ood.data.member import leads_out
from clip_ood.errors import UserError
from clip_ood.files.writing import naming

DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, gzip.BadGzipFile, NotImplementedError)


class Damaged(UserError):
    """An archive is truncated or was changed."""


def unpack(archive: Path, target: Path) -> list[str]:
    """Unpacks to `target` the content that has its name: a member of a tar or zip file, a .gz file's content, or any other file.

    Links and special members (devices, pipes) are left out; it returns what they are.

    Raises: UnsafeArchive for absolute paths, paths with .., and for more bytes or members than an archive of its size or this
    disk may take; Damaged for one that is not whole; ValueError for one that holds no such member; FileExistsError for a target
    that is there.
    """
    if target.exists():
        raise FileExistsError(17, "already there; move it away", str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.parent / f".unpacking-{archive.name}"
    shutil.rmtree(aside, ignore_errors=True)  # left by a killed run
    aside.mkdir()
    try:
        try:
            with naming(target):
                passed_over = _extract(archive, aside, target.name)
        except DAMAGED as error:
            raise Damaged(f"{archive} is damaged ({type(error).__name__}: {error})") from error
        except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
            raise UserError(f"{archive} holds a file and a folder of one name, {error.filename}") from error
        if not (aside / target.name).exists():
            held = ", ".join(sorted(path.name for path in aside.iterdir())[:5]) or "nothing"
            raise UserError(f"{archive} holds {held}, and not {target.name}; it was left as it is")
        (aside / target.name).rename(target)
        return passed_over
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _extract(archive: Path, folder: Path, name: str) -> list[str]:
    allowed, kind = Allowance(archive, folder), archive.name.lower()
    if kind.endswith((".tar", ".tar.gz", ".tgz")):
        return _write(in_tar(archive), folder, allowed)
    if kind.endswith(".zip"):
        return _write(in_zip(archive), folder, allowed)
    with (gzip.open if kind.endswith(".gz") else open)(archive, "rb") as source:
        _copy(source, folder / name, allowed)
    return []


def _write(members: Iterator[Member], folder: Path, allowed: Allowance) -> list[str]:
    passed_over = []
    for member in members:
        _check_name(member.name)
        allowed.take(member.name, member.size)
        place = folder / member.name
        if member.special:
            passed_over.append(f"{member.name} ({member.special})")
        elif member.is_folder:
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            with member.opened() as source:
                _copy(source, place)
    return passed_over


def _copy(source: BinaryIO, place: Path, allowed: Allowance | None = None) -> None:
    with place.open("wb") as copy:
        while block := source.read(BLOCK):
            if allowed is not None:  # the size is unknown
                allowed.take(place.name, len(block))
            copy.write(block)


def _check_name(name: str) -> None:
    if leads_out(name):
        raise UnsafeArchive(f"the archive holds {name}, which would leave its folder: nothing of it was kept")
