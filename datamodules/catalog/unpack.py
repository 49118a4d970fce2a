"""Archives from elsewhere: unpacked beside their place and moved there when whole; nothing in them may reach out."""

from __future__ import annotations

import gzip
import shutil
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from clip_ood.files import naming

DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, gzip.BadGzipFile)


class UnsafeArchive(ValueError):
    """An archive with a member that would be written, or points, outside its folder."""


def unpack(archive: Path, target: Path) -> None:
    """Puts what `archive` holds under the name of `target` there: a member of a tar or zip file, a .gz file's content, or
    a file of another kind as it is.

    Raises: UnsafeArchive for absolute paths, paths with .., links and devices; ValueError for a damaged archive, and one
    that holds no such member; FileExistsError for a target that is there.
    """
    if target.exists():
        raise FileExistsError(17, "already there; move it away", str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.parent / f".unpacking-{archive.name}"
    shutil.rmtree(aside, ignore_errors=True)  # a killed run's
    aside.mkdir()
    try:
        try:
            with naming(target):
                _extract(archive, aside, target.name)
        except DAMAGED as error:
            raise ValueError(
                f"{archive} is damaged ({type(error).__name__}: {error}); remove it and get it again"
            ) from error
        if not (aside / target.name).exists():
            held = ", ".join(sorted(path.name for path in aside.iterdir())[:5]) or "nothing"
            raise ValueError(f"{archive} holds {held}, and not {target.name}; it was left as it is")
        (aside / target.name).rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _extract(archive: Path, folder: Path, name: str) -> None:
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter=_safe_member)
    elif zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for info in file.infolist():
                _check(info.filename, stat.S_ISLNK(info.external_attr >> 16))
            file.extractall(folder)
    elif archive.suffix == ".gz":
        with gzip.open(archive) as source, (folder / name).open("wb") as copy:
            shutil.copyfileobj(source, copy)
    elif archive.name.endswith((".tar", ".zip", ".tgz")):
        raise tarfile.ReadError("no archive of its kind")
    else:
        shutil.copyfile(archive, folder / name)


def _safe_member(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    _check(member.name, not (member.isreg() or member.isdir()))
    return tarfile.data_filter(member, folder)


def _check(name: str, special: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if special:
        raise UnsafeArchive(f"the archive holds {name}, a link or device: nothing of it was kept")
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[:1]:
        raise UnsafeArchive(f"the archive holds {name}, which would leave its folder: nothing of it was kept")
