"""Reads the names of new images from files, folders, lists, archives, buckets and standard input, in a fixed order and without end.

Nothing is listed before it is asked for, except the names in one folder, so that a million images elsewhere take no more memory
than one.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from pyarrow import ArrowException

from clip_ood.data.member import DamagedArchive
from clip_ood.data.members import is_none, members_of
from clip_ood.data.parquet_table import SUFFIX, ParquetTable
from clip_ood.data.readers.objects import Object, image_at
from clip_ood.data.readers.on_disk import Place
from clip_ood.data.readers.parquet_rows import Row
from clip_ood.data.readers.shards import is_image
from clip_ood.errors import UserError
from clip_ood.features.identity import identity_of
from clip_ood.files.archive_names import OTHERS, archive_of
from clip_ood.files.hidden import is_hidden
from clip_ood.files.pictures import SUFFIXES, decode
from clip_ood.files.regular_file import special
from clip_ood.files.remote.address import Address, WrongAddress, is_address, place_at
from clip_ood.files.remote.fetched import local
from clip_ood.files.remote.listing import files_below, kind
from clip_ood.files.text_files import NotText, names_in, not_utf8
from clip_ood.files.unreadable import check_of_file
from clip_ood.naming import as_there
from clip_ood.process.stalls import reading

STDIN = "-"
OPEN = re.compile(
    r"/dev/stdin|(/dev|/proc/self)/fd/\d+"
)  # files that this process already has open, such as <(find …) of a shell
LISTS = (".txt", ".lst", ".list")
BESIDE = (".cls", ".json", ".txt")  # webdataset's labels, notes and captions, which are ignored in shards
UNREAD = "it is packed in a way that is not read: unpack it, and name the folder; .zip, .tar, .tar.gz, .tar.bz2 and .tar.xz are read as they are"
DEEPEST = 200  # folders in folders


@dataclass(frozen=True)
class Source:
    """One image: the `path` by which it is called, the part of its name below the named folder or archive (`inside`), and
    where it lies; or the `reason` why there is no image.
    """

    path: str
    inside: str
    place: Place | Row | Object
    reason: str | None = None

    def read(self) -> tuple[Image.Image, bytes]:
        """Returns the picture as 8-bit RGB, and the identity of the file's content.

        Raises: UnreadableImage for a file that is not a whole image, OSError for a file that cannot be read.
        """
        content = self.place.read()
        return decode(io.BytesIO(content)), identity_of(content)


def sources(paths: Iterable[str]) -> Iterator[Source]:
    """Yields every image that some paths name, and everything that is no image with a reason.

    A path names a folder with everything below it except hidden files and thumbnails; a tar or zip file, or a folder in one; a
    parquet file with a column of images; a text file with a path on each line, which may be standard input ("-") or a pipe of the shell; or
    otherwise an image file. An address names the same in a bucket or behind a URL.
    """
    for path in paths:
        if is_address(path):
            yield from _at(path)
        elif path == STDIN:
            yield from _listed("standard input", sys.stdin.buffer)
        elif is_stream(path):
            with open(path, "rb") as file:
                yield from _listed(path, file)
        elif os.path.isdir(path):
            yield from _below(path, "", frozenset())
        elif archive_of(path) is not None:
            yield from _members(path)
        elif path.lower().endswith(SUFFIX):
            yield from _rows(path)
        elif path.lower().endswith(LISTS):
            if (kind := special(path)) is not None:
                yield _file(
                    path, os.path.basename(path), f"it is {kind}, and no list: give its paths on standard input (-)"
                )
                continue
            with open(path, "rb") as file:
                yield from _listed(path, file)
        else:
            is_packed = path.lower().endswith(OTHERS) and os.path.isfile(path)
            yield _file(path, os.path.basename(path), UNREAD if is_packed else None)


def _at(text: str) -> Iterator[Source]:
    """Yields what an address names, as `sources` does of a path."""
    place = place_at(text)
    if isinstance(place, Path):  # file://…
        yield from sources([str(place)])
        return
    name = place.name.lower()
    if archive_of(place) is not None:
        yield from _members(place)
    elif name.endswith(SUFFIX):
        yield from _rows(place)
    elif name.endswith(LISTS):
        with local(place).open("rb") as file:
            yield from _listed(str(place), file)
    elif posixpath.splitext(name)[1] not in SUFFIXES and kind(place) == "folder":
        yield from _objects(place)
    else:
        yield _file(text, name)


def _objects(folder: Address) -> Iterator[Source]:
    """Yields the objects of a folder. Raises: UserError if not all can be listed, as none may be missing unnoticed."""
    try:
        for file in files_below(folder):
            is_picture = posixpath.splitext(file.name)[1].lower() in SUFFIXES
            reason = None if is_picture else "no image by its name"
            yield Source(str(file.address), file.name.lstrip("/"), Object(*file[1:]), reason)
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error.strerror}") from None


def is_stream(path: str) -> bool:
    """Says whether paths are read as they come, and only once: from standard input, or from a pipe that the shell has opened."""
    return path == STDIN or (OPEN.fullmatch(path) is not None and special(path) is not None)


def _listed(called: str, file: io.BufferedReader) -> Iterator[Source]:
    try:
        for path in map(as_there, filter(None, names_in(file))):
            is_lost = not_utf8(path) and not os.path.lexists(path)
            reason = "no such file, and the name is not UTF-8: save the list as UTF-8" if is_lost else None
            yield _file(path, os.path.basename(path), reason)
    except NotText as error:
        yield _file(called, called, f"the list ends here: {error}")


def _file(path: str, inside: str, reason: str | None = None) -> Source:
    if not is_address(path):
        return Source(path, inside, Place(path), reason)
    try:
        place = place_at(path)
    except UserError as error:
        return Source(path.partition("://")[0] + "://…", inside, Place(os.devnull), str(error))
    return Source(str(place), place.name, image_at(place), reason)


def _below(folder: str, inside: str, above: frozenset[str]) -> Iterator[Source]:
    here = os.path.realpath(folder)
    if here in above:
        yield _file(folder, inside, f"a link back to {here}, which it lies in")
        return
    if len(above) == DEEPEST:
        yield _file(folder, inside, f"folders nested deeper than {DEEPEST}")
        return
    try:
        with reading(folder), os.scandir(folder) as entries:
            names = [each.name + "/" * _is_folder(each) for each in entries if not is_hidden(each.name)]
    except OSError as error:
        check_of_file(error)
        yield _file(folder, inside, f"the folder cannot be read: {error.strerror}")
        return
    for name in sorted(names):  # folders have their slash, so that the order is that of paths
        path = os.path.join(folder, name)
        if name.endswith("/"):
            yield from _below(path.rstrip("/"), inside + name, above | {here})
        elif os.path.splitext(name)[1].lower() in SUFFIXES:
            yield _file(path, inside + name)
        else:
            yield _file(path, inside + name, "no image by its name")


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # it is a link to itself
        return False


def _members(path: str | Address) -> Iterator[Source]:
    """Yields the images of an archive, other members that may be meant for images, and the fault of an archive that is not whole."""
    archive, folder = archive_of(path)
    images = 0
    try:
        for member in members_of(local(archive), folder):
            if member.is_folder or member.name.lower().endswith(BESIDE):
                continue
            images += is_image(member)
            reason = member.fault if is_image(member) else "no image by its name"
            place = member.place or Place(os.devnull if isinstance(archive, Address) else str(archive))
            yield Source(f"{path}/{member.name}", f"{os.path.basename(str(path))}/{member.name}", place, reason)
    except DamagedArchive as error:
        reason = f"it {is_none(archive)}: {error}"
    except UserError as error:
        reason = str(error)
    except OSError as error:
        check_of_file(error)
        reason = f"it cannot be read: {error.strerror or error}"
    else:
        reason = None if images else "it holds no images" + f" in a folder {folder}" * bool(folder)
    if reason is not None:
        yield _file(str(path), os.path.basename(str(path)), reason)


def _rows(path: str | Address) -> Iterator[Source]:
    """Yields the images of a parquet file, and the fault of one that is not whole or has none."""
    name, file, row = os.path.basename(str(path)), path if isinstance(path, Address) else Path(path), -1
    try:
        for row, place in enumerate(ParquetTable(local(file), beside=file.parent).places()):
            called, reason = f"{path}/{row:06d}", None
            if isinstance(place, WrongAddress):
                place, reason = Place(os.devnull), str(place)
            elif not isinstance(place, Row):
                called = place.path
            yield Source(called, f"{name}/{row:06d}", place, reason)
        if row < 0:
            yield _file(str(path), name, "it has no rows")
    except UserError as error:
        yield _file(str(path), name, str(error))
    except (ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError):
            check_of_file(error)
        yield _file(str(path), name, f"it cannot be read: {getattr(error, 'strerror', None) or error}")
