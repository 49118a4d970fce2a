"""The interface of every source of images: names, labels, each image, and a stamp that shows that an image has not changed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from errno import EIO
from typing import NamedTuple

import numpy as np

from clip_ood.features.identity import pairs


class NoImage(OSError):
    """A source can be read, and holds no whole image at one of its places; such an image counts as unreadable, as a damaged file does."""


class Stamp(NamedTuple):
    """What identifies an image as long as it stays the same: 16 bytes, made by `identity_of` of a path, a size and times.

    `vague` says whether the image could change although the stamp stays the same.
    """

    value: bytes
    vague: bool = False


class Stamps(NamedTuple):
    """The stamps of n images: values (n, 2) uint64 and vague (n,) bool."""

    values: np.ndarray
    vague: np.ndarray


class Reader(ABC):
    """The N images of one source, in a fixed order. It is sent to other processes, which read as well, so it holds no open file.

    Attributes: names: all distinct, with "/" between folders; labels: one class index for each image (-1: no class), None if the
    source has no classes; class_names: in label order, None if labels are only numbers; waits: whether reading mostly waits for a server,
    so that several images are read at the same time.
    """

    names: Sequence[str]
    labels: Sequence[int] | None = None
    class_names: Sequence[str] | None = None
    waits: bool = False

    @abstractmethod
    def open(self, index: int) -> bytes | np.ndarray:
        """Returns an image: the content of its file (PNG, JPEG, …), or its pixels, (H, W) or (H, W, 3) of uint8.

        Raises: OSError for an image that cannot be read, NoImage where there is none.
        """

    def stamp(self, index: int) -> Stamp | None:
        """Returns a stamp that shows, without reading the image, that it is the one that was read before.

        It is None for all images of a source (as here) if nothing shows this; then every run opens each of them once to recognise
        it.
        Raises: OSError for an image that is not there.
        """
        return None

    def stamps(self, indices: Iterable[int]) -> Stamps:
        """Returns the stamps of some images, for a source that has stamps."""
        found = [self.stamp(index) for index in indices]
        return Stamps(pairs(each.value for each in found), np.array([each.vague for each in found], bool))

    def load(self, index: int) -> tuple[bytes | np.ndarray, Stamp | None]:
        """Returns an image, and its stamp when it was read.

        Raises: OSError as `open` does, and for an image that changes meanwhile.
        """
        before = self.stamp(index)
        content = self.open(index)
        if self.stamp(index) != before:
            raise OSError(EIO, "the image changes while it is read", self.names[index])
        return content, before

    def path(self, index: int) -> str | None:
        """Returns the file that holds this image and nothing else, or None if there is none."""
        return None
