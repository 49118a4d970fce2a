"""Lists the members of tar and zip files one after the other, with their kind and size; nothing is written."""

from __future__ import annotations

import gzip
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from clip_ood.data.tar_members import Bounded

BLOCK = 1 << 20  # bytes read at a time


class Member(NamedTuple):
    """One member: its unpacked `size` in bytes, and what it is if it is neither a file nor a folder (`special`)."""

    name: str
    size: int
    is_folder: bool
    special: str
    opened: Callable[[], BinaryIO]


def in_tar(archive: Path) -> Iterator[Member]:
    """Yields the members of a tar file, compressed by gzip or not at all. Raises: tarfile.TarError if it is not whole."""
    compressed = not archive.name.lower().endswith(".tar")
    with (gzip.open if compressed else open)(archive, "rb") as file:
        with tarfile.open(fileobj=Bounded(file), mode="r:", tarinfo=_WholeHeader) as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # tarfile would keep every header
                yield Member(info.name, info.size, info.isdir(), _special(info), partial(tar.extractfile, info))
        while file.read(BLOCK):  # reads up to the checksum at the end of a .gz
            pass


def in_zip(archive: Path) -> Iterator[Member]:
    """Yields the members of a zip file. Raises: zipfile.BadZipFile if it is not whole."""
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if info.flag_bits & 1:
                raise zipfile.BadZipFile(f"{info.filename} is encrypted")
            kind = stat.S_IFMT(info.external_attr >> 16)
            special = "" if kind in (0, stat.S_IFREG, stat.S_IFDIR) else _KINDS.get(kind, "special")
            yield Member(info.filename, info.file_size, info.is_dir(), special, partial(file.open, info))


class _WholeHeader(tarfile.TarInfo):
    """A member's header; tarfile itself takes a damaged one after the first for the archive's end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tar)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:
            raise tarfile.ReadError(f"the header at byte {tar.offset:,} is damaged ({error})") from None


_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def _special(info: tarfile.TarInfo) -> str:
    if info.issym():
        return f"a symbolic link to {info.linkname}"
    if info.islnk():
        return f"a hard link to {info.linkname}"
    if info.isfifo():
        return "a pipe"
    if info.ischr() or info.isblk():
        return "a device"
    if info.sparse is not None:
        return "a file with holes"
    return "" if info.isreg() or info.isdir() else "of an unknown kind"
