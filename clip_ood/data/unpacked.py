"""Unpacks compressed tar files into the user's cache, since nothing in them can be found without reading all that comes before.

    ~/.cache/clip-ood/unpacked/<key>.tar    the tar file; its key is made of path, size, times and inode of the compressed file

An archive is unpacked once and used by every later run. Beyond `LIMIT` bytes in all, those go that were not used for longest and that
no process uses (`clip_ood.files.kept`).
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from rich.filesize import decimal

from clip_ood.data.allowance import Allowance
from clip_ood.data.member import DamagedArchive, opened
from clip_ood.data.readers.on_disk import Place
from clip_ood.errors import UserError
from clip_ood.files.cache import cache
from clip_ood.files.file_types import START, WrongType, check_start
from clip_ood.files.kept import keeping, make_room, tell
from clip_ood.files.writing import naming, remove_abandoned, temporary_name
from clip_ood.process.ranks import is_first
from clip_ood.process.stalls import reading

LIMIT = 200 * 2**30  # bytes of all unpacked archives together
BLOCK = 1 << 20
OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
DAMAGED = (EOFError, zlib.error, lzma.LZMAError)


def unpacked(archive: Path) -> Path:
    """Returns the tar file that a compressed one holds, which is unpacked if it is not in the cache.

    Raises: DamagedArchive for a file that is not compressed, or not whole; UnsafeArchive for one that gives over 100 times its own size,
    or more than the disk has room for; UserError for one that gives more than `LIMIT`, and if nothing can be written to the cache;
    OSError.
    """
    with opened(archive) as file:
        key = Place(str(archive)).known_by(os.fstat(file.fileno()))
        target = cache() / "unpacked" / f"{key.hex()}.tar"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{archive} would be unpacked to {target.parent}, which cannot be made ({error.strerror}): unpack it yourself, and "
                "name the folder, or set XDG_CACHE_HOME"
            ) from error
        with keeping(target.parent, target):
            if not target.is_file():
                _unpack(archive, file, target)
    return target


def _unpack(archive: Path, file: BinaryIO, target: Path) -> None:
    remove_abandoned(target.parent)
    if is_first():
        tell(f"Unpacking {archive} to {target}, once: its images cannot be found otherwise")
    temporary = target.with_name(temporary_name(target))
    allowed, written = Allowance(archive, target.parent), 0
    try:
        with naming(target), temporary.open("wb") as copy:
            for block in _blocks(archive, file):
                allowed.take(archive.name, len(block))
                written += len(block)
                if written > LIMIT:
                    raise UserError(
                        f"{archive} unpacks to more than {decimal(LIMIT)}, which is all that the cache keeps: unpack it yourself, "
                        "and name the folder"
                    )
                copy.write(block)
            copy.flush()
            os.fsync(copy.fileno())
        make_room(target.parent, "*.tar", written, LIMIT)
        state = os.fstat(file.fileno())
        os.utime(temporary, ns=(state.st_atime_ns, state.st_mtime_ns))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _blocks(archive: Path, file: BinaryIO) -> Iterator[bytes]:
    start = file.read(START)
    file.seek(0)
    opener = next((opener for mark, opener in OPENERS.items() if start.startswith(mark)), None)
    if opener is None:
        try:
            check_start(start, archive.name)
        except WrongType as error:
            raise DamagedArchive(str(error)) from None
        raise DamagedArchive(f"it is not compressed by gzip, bzip2 or xz: it begins with {start[:8]!r}")
    try:
        with opener(file) as content:
            while True:
                with reading(archive):
                    block = content.read(BLOCK)
                if not block:
                    return
                yield block
    except DAMAGED as error:
        raise DamagedArchive(str(error)) from None
    except OSError as error:
        if error.errno is not None:  # of the disk, not of what the file holds
            raise
        raise DamagedArchive(str(error)) from None
