"""Fetches whole files from addresses, as archives and lists, into the user's cache, where they are files as any other.

    ~/.cache/clip-ood/fetched/<key>.file/<name>    its key is made of address, size and version, or of its content if it has no version

A file is fetched once and used by every later run, until it changes at its address. Beyond `LIMIT` bytes in all, those go that were not
used for longest and that no process uses (`clip_ood.files.kept`). Who fetches a file has it alone; others fetch other files meanwhile.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from errno import EIO, EISDIR, ENOENT
from functools import cache as once
from pathlib import Path

from rich.filesize import decimal

from clip_ood.errors import UserError
from clip_ood.files.cache import cache
from clip_ood.files.checksum import hexdigest
from clip_ood.files.kept import keeping, make_room, tell
from clip_ood.files.remote.address import WEB, Address
from clip_ood.files.remote.ahead import ahead
from clip_ood.files.remote.listing import Found, find
from clip_ood.files.remote.patience import SLOWEST, asked
from clip_ood.files.writing import naming, remove_abandoned, temporary_name
from clip_ood.naming import short
from clip_ood.process.locks import in_turn
from clip_ood.process.ranks import is_first

LIMIT = 200 * 2**30  # bytes of all fetched files together
BLOCK = 8 << 20  # bytes that are asked for at a time
AT_ONCE = 4  # blocks


def local(place: Path | Address) -> Path:
    """Returns a file of this machine: the one at a path, or a copy of that at an address, which is fetched if it is not in the cache.

    Raises: OSError for a file that cannot be had, UserError for one that there is no room for.
    """
    return _fetched(place) if isinstance(place, Address) else place


@once
def _fetched(address: Address) -> Path:
    found = find(address)
    if found is None:
        raise FileNotFoundError(ENOENT, "nothing is there", str(address))
    if found.is_folder:
        raise IsADirectoryError(EISDIR, "it is a folder, and no file", str(address))
    folder = cache() / "fetched"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{address} would be fetched to {folder}, which cannot be made ({error.strerror}): set XDG_CACHE_HOME"
        ) from error
    if not found.version:
        return _without_version(address, found, folder)
    target = _entry(folder, address, str(found.size), found.version)
    with keeping(target.parent, target.parent):
        if not target.is_file():
            _fetch(address, found, target)
    return target


def _without_version(address: Address, found: Found, folder: Path) -> Path:
    """Fetches what may have changed since it was fetched before, once in a process; where it has not, the former copy is taken."""
    came = _entry(folder, address)
    with in_turn(came.parent, tell):
        _fetch(address, found, came)
        target = _entry(folder, address, hexdigest(came, "sha256"))
        with keeping(target.parent, target.parent):
            if not target.is_file():
                target.parent.mkdir(exist_ok=True)
                came.replace(target)
        shutil.rmtree(came.parent)
    return target


def _entry(folder: Path, address: Address, *version: str) -> Path:
    key = hashlib.blake2b(
        "\0".join([address.lasting, *version]).encode("utf-8", "surrogateescape"), digest_size=16
    ).hexdigest()
    name = short(re.sub(r"[/\0]", "_", address.name))  # %2F and %00 in an address of the web
    return folder / f"{key}.file" / (name if name.strip(".") else "file")


def _fetch(address: Address, found: Found, target: Path) -> None:
    folder = target.parent.parent
    remove_abandoned(target.parent)
    if (found.size or 0) > LIMIT:
        raise UserError(
            f"{address} has {decimal(found.size)}, more than the {decimal(LIMIT)} that the cache keeps: download it yourself, and name the file"
        )
    if (found.size or 0) > (free := shutil.disk_usage(folder).free):
        raise UserError(
            f"{address} has {decimal(found.size)}, and {folder} has room for {decimal(free)}: free some room, or set XDG_CACHE_HOME"
        )
    if is_first():
        size = "" if found.size is None else f" ({decimal(found.size)})"
        tell(f"Fetching {address}{size} to {target}, once")
    with in_turn(folder, tell):
        make_room(folder, "*.file", found.size or 0, LIMIT)
    target.parent.mkdir(exist_ok=True)
    with naming(target):
        _download(address, target) if address.protocol in WEB else _in_blocks(address, found, target)


def _download(address: Address, target: Path) -> None:
    from clip_ood.files.download import DownloadError, download  # with http and ssl

    try:
        download(address.whole, target, slowest=SLOWEST)
    except DownloadError as error:
        told = str(error).replace(address.whole, str(address))
        raise DownloadError(told.replace(address.query, "…") if address.query else told) from None


def _in_blocks(address: Address, found: Found, target: Path) -> None:
    temporary = target.with_name(temporary_name(target))

    def block(start: int) -> bytes:
        end = min(start + BLOCK, found.size)
        content = asked(address, "cat_file", size=BLOCK, start=start, end=end)
        if len(content) != end - start:
            raise OSError(EIO, "it changes while it is read", str(address))
        return content

    try:
        with temporary.open("wb") as file:
            for content in ahead(block, range(0, found.size, BLOCK), AT_ONCE):
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if find(address) != found:
            raise OSError(EIO, "it changes while it is read", str(address))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
