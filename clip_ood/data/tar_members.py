"""Lists the members of a tar file with their places in it; a file that is not whole is never taken for a shorter one."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from clip_ood.data.member import DamagedArchive, Member, opened
from clip_ood.data.readers.on_disk import Place

BLOCK = tarfile.BLOCKSIZE
LONGEST_READ = (
    1 << 24
)  # bytes: tarfile reads long names and extended headers in one piece, of any size that they declare
LONGEST_END = tarfile.RECORDSIZE + 2 * BLOCK  # zero bytes that may end an archive: two blocks, and what fills a record
COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\x00": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"PK\x03\x04": ("zip", "unzip"),
    b"7z\xbc\xaf": ("7z", "7z x"),
    b"Rar!": ("rar", "unrar x"),
}


class Bounded:
    """An open file for tarfile, which limits the memory that a header may ask for."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LONGEST_READ:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.file.read(size)


def tar_members(path: Path) -> Iterator[Member]:
    """Yields the files and folders of a tar file in its order, from the headers alone.

    Raises: as `members` does.
    """
    with opened(path) as file:
        for info in members(file):
            if info.isdir():
                yield Member(info.name, is_folder=True)
                continue
            fault = not_stored(info)
            yield Member(info.name, None if fault else Place(str(path), info.offset_data, info.size), fault)


def not_stored(info: tarfile.TarInfo) -> str | None:
    """Returns why the bytes of a member do not follow its header, or None if they do."""
    if info.issym() or info.islnk():
        return f"it is a link to {info.linkname}: pack the images with tar --dereference --hard-dereference"
    if info.sparse is not None:
        return "it is stored with holes: pack the images without tar --sparse"
    return None if info.isreg() else "it is no file"


def members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yields every member of a tar file in its order, from the headers alone; in between, the file may be read anywhere.

    Raises: DamagedArchive if a header is damaged or missing, if the file is truncated, or if more follows its end mark, as in
    archives that were appended to each other; OSError.
    """
    _check_start(file)
    end, last = 0, None
    try:
        with tarfile.open(fileobj=Bounded(file), mode="r:", encoding="utf-8") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # tarfile would keep every header
                if tar.offset < info.offset_data:
                    raise tarfile.ReadError("a negative size")
                end, last = tar.offset, info.name
                yield info
    except (tarfile.TarError, ValueError, OverflowError) as error:  # from headers
        raise _damaged(last, end, str(error)) from None
    if why := _end_of(file, end):
        raise _damaged(last, end, why)


def _check_start(file: BinaryIO) -> None:
    start = file.read(8)
    file.seek(0)
    for mark, (kind, command) in COMPRESSED.items():
        if start.startswith(mark):
            raise DamagedArchive(f"it is compressed ({kind}): unpack it with {command}")
    if not start:
        raise DamagedArchive("it is empty")


def _end_of(file: BinaryIO, offset: int) -> str | None:
    """Returns what is wrong with the end of an archive whose last member ends at `offset`, or None if it ends in zeros."""
    left = os.fstat(file.fileno()).st_size - offset
    if left < BLOCK:
        return "the file ends here, without the end mark of a tar file: it was cut"
    file.seek(offset)
    if any(file.read(BLOCK)):
        return "the header that begins here is damaged"
    while block := file.read(1 << 20):
        if any(block):
            return (
                "zeros as at the end of a tar file stand here, and more follows: it is damaged, or several archives lie one behind "
                "the other (join them with tar --concatenate)"
            )
    if left > LONGEST_END:
        return f"only zeros follow, {left:,} bytes, more than end a tar file: its download was perhaps not finished"
    return None


def _damaged(last: str | None, offset: int, why: str) -> DamagedArchive:
    where = "at its beginning" if last is None else f"behind its member {last}, at byte {offset:,}"
    return DamagedArchive(f"{where}: {why}")
