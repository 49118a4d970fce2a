"""A set of images as a list: a reader's images, or some of them, with their labels and their corruption."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from clip_ood.data.corruptions import Corruption
from clip_ood.data.readers.reader import NoImage, Reader, Stamps
from clip_ood.errors import ConfigError, UserError
from clip_ood.features.identity import SIZE, identity_of, pairs
from clip_ood.files.pictures import UnreadableImage, decode
from clip_ood.files.remote.address import Address
from clip_ood.files.remote.ahead import ahead


@dataclass(frozen=True)
class Loaded:
    """An image as it was read: its identity, its source's content and stamp, and the picture, which is decoded on demand.

    Content and stamp are None if the reader has no stamps.
    """

    identity: bytes
    content: bytes | None
    stamp: bytes | None
    picture: Callable[[], Image.Image]


@dataclass(frozen=True, eq=False)
class ImageList:
    """N images, in a fixed order. A list equals itself alone.

    Attributes: root: where they lie, for messages; rows: the place of each among the images of `reader`; labels: a class index
    for each (-1: none), None without classes; class_names: in label order, if the source names them; corruption: applied to each
    image after decoding.
    """

    name: str
    root: Path | Address
    reader: Reader
    rows: Sequence[int]
    labels: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None
    corruption: Corruption | None = None

    @classmethod
    def of(cls, name: str, root: Path, reader: Reader) -> ImageList:
        """Makes the list of all images of a reader."""
        labels = None if reader.labels is None else tuple(np.asarray(reader.labels, np.int64).tolist())
        class_names = None if reader.class_names is None else tuple(reader.class_names)
        return cls(name, root, reader, range(len(reader.names)), labels, class_names)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The reader's name of each image."""
        return tuple(self.reader.names[row] for row in self.rows)

    def read(self, index: int) -> Image.Image:
        """Returns the image as 8-bit RGB; raises what reading raises."""
        return self._picture(index, self._checked(index, self.reader.open(self.rows[index])))

    def load(self, index: int) -> Loaded:
        """Reads the image without decoding it. Raises: OSError for an image that cannot be read."""
        try:
            read, stamp = self.reader.load(self.rows[index])
        except NoImage as error:
            return self._absent(index, str(error.strerror))
        content = content_of(self._checked(index, read))
        identity = self._after_corruption(index, content)
        picture = lambda: self._picture(index, read)  # noqa: E731
        return (
            Loaded(identity, None, None, picture) if stamp is None else Loaded(identity, content, stamp.value, picture)
        )

    def loads(self, indices: Iterable[int]) -> Iterator[Loaded]:
        """Loads images in this order, and from servers the next ones meanwhile. Raises: as `load` does."""
        return ahead(self.load, indices) if self.reader.waits else map(self.load, indices)

    def _absent(self, index: int, reason: str) -> Loaded:
        """Returns what stands for an image that its source does not hold."""

        def picture() -> Image.Image:
            raise UnreadableImage(reason)

        content = identity_of("no image", self.reader.names[self.rows[index]], reason)
        identity, stamp = self._after_corruption(index, content), self.reader.stamp(self.rows[index])
        return Loaded(identity, *((None, None) if stamp is None else (content, stamp.value)), picture)

    def content(self, index: int) -> bytes:
        """Reads an image's source, and returns the 16 bytes that identify its content."""
        return content_of(self._checked(index, self.reader.open(self.rows[index])))

    def identities(self) -> np.ndarray | None:
        """Reads images that have no stamps, and returns their identities (N, 2); returns None if they have stamps."""
        try:
            if not len(self) or self.reader.stamp(self.rows[0]) is not None:
                return None
            return self.derived(pairs([self.content(index) for index in range(len(self))]))
        except OSError as error:
            raise self._lost(error) from error

    def derived(self, contents: np.ndarray) -> np.ndarray:
        """Returns the identities (N, 2) of images from those of their sources; they differ only for corrupted images."""
        if self.corruption is None:
            return contents
        sources = contents.astype("<u8").tobytes()
        return pairs([self._after_corruption(row, sources[row * SIZE : (row + 1) * SIZE]) for row in range(len(self))])

    def stamps(self, indices: np.ndarray | None = None) -> Stamps:
        """Returns the stamps of some images (None: all), whose reader has stamps.

        Raises: ConfigError for an image that is not there.
        """
        try:
            return self.reader.stamps(self.rows if indices is None else [self.rows[i] for i in indices.tolist()])
        except OSError as error:
            raise self._lost(error) from error

    def known_by(self) -> np.ndarray:
        """Returns what distinguishes these images from others, (N, 2), reading no more of them than necessary."""
        identities = self.identities()
        return self.stamps().values if identities is None else identities

    def paths(self) -> list[str] | None:
        """The file that each image is, or None if they are not files of their own."""
        found = [self.reader.path(row) for row in self.rows]
        return None if None in found else found

    def _checked(self, index: int, read: bytes | np.ndarray) -> bytes | np.ndarray:
        """Returns what a reader has opened. Raises: UserError for anything but a file's bytes or 8-bit pixels."""
        is_pixels = isinstance(read, np.ndarray) and read.dtype == np.uint8 and 0 not in read.shape
        if isinstance(read, bytes) or (is_pixels and (read.ndim == 2 or read.ndim == read.shape[-1] == 3)):
            return read
        given = f"an array {read.shape} of {read.dtype}" if isinstance(read, np.ndarray) else f"a {type(read).__name__}"
        raise UserError(
            f"Image set {self.name}: {type(self.reader).__name__}.open({self.rows[index]}) gave {given}; expected the bytes of an image "
            "file, or an array (H, W) or (H, W, 3) of uint8"
        )

    def _lost(self, error: OSError) -> ConfigError:
        lost = error.filename or "an image"
        return ConfigError(f"Image set {self.name}: {lost} cannot be had ({error.strerror or error})")

    def _after_corruption(self, index: int, identity: bytes) -> bytes:
        """Returns the identity of an image after its corruption, whose noise is drawn by the image's name."""
        if self.corruption is None:
            return identity
        return identity_of(identity, *map(str, self.corruption.key), self.reader.names[self.rows[index]])

    def _picture(self, index: int, read: bytes | np.ndarray) -> Image.Image:
        image = decode(io.BytesIO(read)) if isinstance(read, bytes) else Image.fromarray(read).convert("RGB")
        return image if self.corruption is None else self.corruption(image, self.reader.names[self.rows[index]])

    def subset(self, keep: Sequence[int]) -> ImageList:
        """Returns the images at the positions `keep`, in that order; nothing is copied."""
        labels = None if self.labels is None else tuple(self.labels[i] for i in keep)
        return replace(self, rows=tuple(self.rows[i] for i in keep), labels=labels)


def content_of(read: bytes | np.ndarray) -> bytes:
    """Returns 16 bytes that identify an image's content: its file, or its pixels."""
    if isinstance(read, bytes):
        return identity_of(read)
    return identity_of("pixels", str(read.shape), np.ascontiguousarray(read).tobytes())


def balanced(images: ImageList, per_class: int, seed: int) -> list[int]:
    """Returns positions of a seeded draw of `per_class` images of each class (all of a class that has fewer), in order."""
    taken: dict[int, int] = {}
    keep = []
    for index in sorted(range(len(images)), key=lambda i: lot(seed, images.names[i])):
        label = images.labels[index]
        if taken.get(label, 0) < per_class:
            taken[label] = taken.get(label, 0) + 1
            keep.append(index)
    return sorted(keep)


def lot(seed: int, name: str) -> bytes:
    """Returns the lot that an image draws: sorting by it is a seeded shuffle that does not change when images are added."""
    return hashlib.blake2b(f"{seed}:{name}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
