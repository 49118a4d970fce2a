"""Reads images that are objects of their own in buckets, or files behind URLs, straight into memory."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from errno import EFBIG, EINVAL, EIO, EISDIR, ENOENT
from pathlib import Path
from typing import TYPE_CHECKING

from clip_ood.data.readers.on_disk import LARGEST, Place
from clip_ood.data.readers.reader import NoImage, Reader, Stamp
from clip_ood.features.identity import identity_of
from clip_ood.files.remote.address import Address
from clip_ood.files.remote.ahead import ahead
from clip_ood.files.remote.content import content_at
from clip_ood.files.remote.listing import Listed, find
from clip_ood.files.remote.patience import TRIES

if TYPE_CHECKING:
    from clip_ood.data.readers.parquet_rows import Row


LEFT_OUT = "…"  # in the place of a query


@dataclass(frozen=True)
class Object:
    """The place of an image: an address, and size in bytes and version of what was listed there (None and "": not known)."""

    address: Address
    size: int | None = None
    version: str = ""

    is_file = False  # of this machine

    @property
    def path(self) -> str:
        """The address as it is shown."""
        return str(self.address)

    @property
    def identity(self) -> str:
        """The address that tells this image from others, never written down: without a version, only the whole query does."""
        return self.address.lasting if self.version else self.address.whole

    def __iter__(self) -> Iterator[str | int | None]:
        """Yields what may be written down of the place; `place_of` takes it. That there was a query is told, and not which one."""
        return iter((f"{self.path}?{LEFT_OUT}" if self.address.query else self.path, self.size, self.version))

    def read(self) -> bytes:
        """Returns the bytes of the object that was listed.

        Raises: NoImage if it is gone, has changed since, or is larger than any image; OSError for a server that refuses or does not answer.
        """
        if self.address.query == LEFT_OUT:
            raise NoImage(EINVAL, "its address had a query (?…), which is not written down", self.path)
        listed = self._now() if self.size is None else self
        try:
            content = b"" if (listed.size or 0) > LARGEST else content_at(self.address, listed.size, LARGEST)
        except FileNotFoundError:
            raise NoImage(ENOENT, "it is gone since it was listed", self.path) from None
        if max(listed.size or 0, len(content)) > LARGEST:
            raise NoImage(EFBIG, f"over {LARGEST:,} bytes, more than any picture that is read", self.path)
        if listed.differs(content):
            raise NoImage(EIO, "it has changed since it was listed", self.path)
        return content

    def load(self) -> tuple[bytes, Stamp]:
        """Returns the bytes and the stamp of the object that was listed. Raises: as `read` does."""
        return self.read(), self.stamp()

    def stamp(self) -> Stamp:
        """Returns the stamp of the object as it was listed; without a version, its content may change unnoticed."""
        return Stamp(identity_of(self.identity, str(self.size), self.version), not self.version)

    def _now(self) -> Object:
        """Returns the object as it is now, of which only the address is known."""
        if (found := find(self.address)) is None:
            raise NoImage(ENOENT, "nothing is there", self.path)
        if found.is_folder:
            raise NoImage(EISDIR, "it is a folder, and no file", self.path)
        return replace(self, size=found.size, version=self.version or found.version)

    def detailed(self, tries: int = TRIES) -> Object:
        """Returns the object with the size and version of now, or as it is if no file is there. Raises: as `find` does."""
        if self.size is not None or (found := find(self.address, tries)) is None or found.is_folder:
            return self
        return replace(self, size=found.size, version=self.version or found.version)

    def differs(self, content: bytes) -> bool:
        """Says whether this is something else than was listed. Where the version is no MD5 of the content, the server is asked again."""
        if self.size is not None and len(content) != self.size:
            return True
        digest = hashlib.md5(content, usedforsecurity=False)
        if not self.version or self.version in (digest.hexdigest(), b64encode(digest.digest()).decode()):
            return False
        now = find(self.address)
        return now is None or now.version != self.version


def image_at(place: Path | Address) -> Place | Object:
    """Returns the place of the image that is a file at a path, or an object at an address."""
    return Object(place) if isinstance(place, Address) else Place(str(place))


def looked_up(places: Sequence[Place | Row | Object]) -> Sequence[Place | Row | Object]:
    """Returns places, those of objects with size and version; what is not there is found when it is read. Raises: as `find` does."""

    def with_details(place: Place | Row | Object) -> Place | Row | Object:
        return place.detailed() if isinstance(place, Object) else place

    return list(ahead(with_details, places)) if any(isinstance(each, Object) for each in places) else places


class Objects(Reader):
    """Reads objects that were listed."""

    waits = True

    def __init__(
        self,
        listed: Sequence[Listed],
        labels: Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.names, self.labels, self.class_names = tuple(each.name for each in listed), labels, class_names
        self.places = [Object(*each[1:]) for each in listed]

    def open(self, index: int) -> bytes:
        return self.places[index].read()

    def load(self, index: int) -> tuple[bytes, Stamp]:
        return self.places[index].load()

    def stamp(self, index: int) -> Stamp:
        return self.places[index].stamp()
