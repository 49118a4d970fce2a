"""Lists an archive as the folder that it would be unpacked to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from posixpath import normpath
from typing import NamedTuple

from clip_ood.data.allowance import UnsafeArchive
from clip_ood.data.member import DamagedArchive, Member
from clip_ood.data.members import is_none, members_of
from clip_ood.data.readers.on_disk import Place
from clip_ood.data.readers.packed import Packed
from clip_ood.data.readers.reader import Reader
from clip_ood.data.readers.shards import LABEL, is_image
from clip_ood.errors import ConfigError
from clip_ood.files.remote.address import Address
from clip_ood.files.remote.fetched import local


class Tree(NamedTuple):
    """The files below a folder, sorted, its own sub-folders, and what makes the reader of some of the files: names, labels, class names."""

    files: list[str]
    folders: list[str]
    reader: Callable[..., Reader]


def in_archive(set_name: str, archive: Path | Address, inside: str) -> Tree:
    """Lists the files in an archive, or in the folder `inside` of it; one at an address is fetched.

    Raises: ConfigError for an archive that is not whole or unpacks to too much, a folder that it does not hold, an image that cannot be
    read in place, two files of one name, and label numbers beside images, which are those of a shard.
    """
    where = f"Image set {set_name}: {archive}"
    places: dict[str, Place | None] = {}
    folders: set[str] = set()
    try:
        for member in members_of(local(archive), inside):
            name = normpath(member.name)
            if member.fault is None and (member.is_folder or "/" in name):
                folders.add(name.split("/", 1)[0])
            if not member.is_folder:
                _check(where, member, name in places)
                places[name] = member.place
    except DamagedArchive as error:
        raise ConfigError(f"{where} {is_none(archive)}: {error}") from None
    except UnsafeArchive as error:
        raise ConfigError(f"{where}: {error}") from None
    except OSError as error:
        raise ConfigError(f"{where} cannot be read ({error.strerror or error})") from error
    if inside and not (places or folders):
        raise ConfigError(f"{where} holds no folder {inside}: a folder in an archive is named as it lies there")
    return Tree(sorted(places), sorted(folders - {"."}), partial(_reader, places))


def _reader(places: dict[str, Place], names: Sequence[str], *classes: Sequence | None) -> Packed:
    return Packed([places[name] for name in names], names, *classes)


def _check(where: str, member: Member, is_twice: bool) -> None:
    if member.name.lower().endswith(LABEL):
        raise ConfigError(
            f"{where} holds label numbers beside its images ({member.name}), as shards of webdataset do: name it as {{shards: …}}"
        )
    if not is_image(member):
        return
    if member.fault is not None:
        raise ConfigError(f"{where}, {member.name}: {member.fault}")
    if is_twice:
        raise ConfigError(f"{where} holds {member.name} twice")
