"""Lists the members of any archive of images, with the place of each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clip_ood.data.member import Member, leads_out
from clip_ood.data.tar_members import tar_members
from clip_ood.data.unpacked import unpacked
from clip_ood.data.zip_members import zip_members
from clip_ood.files.archive_names import PACKED, ZIP
from clip_ood.files.hidden import is_hidden
from clip_ood.files.remote.address import Address


def members_of(archive: Path, inside: str = "") -> Iterator[Member]:
    """Yields the members of an archive that are neither hidden nor thumbnails; those in the folder `inside` alone, named from there.

    A compressed tar file is unpacked first (see `unpacked`). A member whose name would lead out of the archive has this as its fault.

    Raises: DamagedArchive, as soon as the damage is seen, for an archive that is not whole; UnsafeArchive for one that unpacks to
    more than it may; OSError.
    """
    above = f"{inside}/" * bool(inside)
    for member in _all(archive):
        name = member.name.removeprefix("./") if above else member.name
        if leads_out(member.name):
            member = Member(name, None, "its name leads out of the archive: pack the images under their own names")
        elif not name.startswith(above) or is_hidden(name.removeprefix(above)):
            continue
        yield member._replace(name=name.removeprefix(above))


def is_none(archive: Path | Address) -> str:
    """Returns what is to be said of a damaged archive of this name, before the reason."""
    name = archive.name.lower()
    if name.endswith(ZIP):
        return "is no whole zip file"
    return "is no whole, compressed tar file" if name.endswith(PACKED) else "is no whole, uncompressed tar file"


def _all(archive: Path) -> Iterator[Member]:
    name = archive.name.lower()
    if name.endswith(ZIP):
        return zip_members(archive)
    return tar_members(unpacked(archive) if name.endswith(PACKED) else archive)
