"""Lists the members of a zip file with their places in it, so that one seek reads each, whatever process does."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from stat import S_IFMT, S_IFREG
from typing import BinaryIO

from clip_ood.data.member import DamagedArchive, Member, opened
from clip_ood.data.readers.on_disk import Place
from clip_ood.files.file_types import WrongType, check_start

HEADER = 30  # bytes of a member's own header, before its name
ENCRYPTED, UTF_8 = 1, 1 << 11  # bits of a member's flags
DOS = 0  # whose programs may write \ between folders
DAMAGED = (zipfile.BadZipFile, ValueError, struct.error, OverflowError, NotImplementedError)  # from zipfile


def zip_members(path: Path) -> Iterator[Member]:
    """Yields the members of a zip file in the order of its directory, which is read at once, and needs no image to be read.

    Raises: DamagedArchive for a file whose directory is damaged or missing, or names a place that holds no member; OSError.
    """
    with opened(path) as file:
        try:
            infos = zipfile.ZipFile(file).infolist()
        except DAMAGED as error:
            raise DamagedArchive(_why(file, error)) from None
        for info in infos:
            name = _name(info)
            if name.endswith("/"):
                yield Member(name, is_folder=True)
                continue
            fault = _fault(info)
            yield Member(name, None if fault else _place(path, file, info), fault)


def _why(file: BinaryIO, error: Exception) -> str:
    file.seek(0)
    start = file.read(512)
    try:
        check_start(start, "x.zip")
    except WrongType as wrong:
        return str(wrong)
    if str(error) == "File is not a zip file":
        return "the directory at its end is missing: it was cut"
    return f"its directory is damaged ({error})"


def _name(info: zipfile.ZipInfo) -> str:
    """Returns a member's name; names that are UTF-8 without saying so, as some programs write them, are read as UTF-8.

    In names of an encoding that is not told, as Japanese ones, \\ may be half of a letter, and is left alone.
    """
    name, known = info.filename, bool(info.flag_bits & UTF_8) or info.filename.isascii()
    if not known:
        with suppress(UnicodeError):  # it is what it says
            name, known = name.encode("cp437").decode("utf-8"), True
    return name.replace("\\", "/") if known and info.create_system == DOS else name


def _fault(info: zipfile.ZipInfo) -> str | None:
    """Returns why a member's bytes cannot be read in place, or None if they can."""
    if S_IFMT(info.external_attr >> 16) not in (0, S_IFREG):
        return "it is a link, or no file: zip the images themselves"
    if info.flag_bits & ENCRYPTED:
        return "it is encrypted: unpack it with its password, and name the folder"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        called = zipfile.compressor_names.get(info.compress_type, "an unknown method")
        return f"it is compressed by {called} (method {info.compress_type}), not by deflate: unpack it, and name the folder"
    return None


def _place(path: Path, file: BinaryIO, info: zipfile.ZipInfo) -> Place:
    try:
        file.seek(info.header_offset)
        header = file.read(HEADER)
    except (ValueError, OverflowError):  # no file is as long
        header = b""
    if len(header) < HEADER or not header.startswith(zipfile.stringFileHeader):
        raise DamagedArchive(
            f"its directory says that {info.filename} begins at byte {info.header_offset:,}, and nothing does"
        )
    name, extra = struct.unpack("<HH", header[-4:])
    gives = info.file_size if info.compress_type == zipfile.ZIP_DEFLATED else None
    return Place(str(path), info.header_offset + HEADER + name + extra, info.compress_size, info.CRC, gives)
