"""What every source of images gives: names, labels, each image, and what says that an image is still the same one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from errno import EIO
from typing import NamedTuple

import numpy as np

from clip_ood.features.identity import pairs


class Stamp(NamedTuple):
    """What an image is known by as long as it stays the same: 16 bytes, as `identity_of` makes them of a path, a size and times; and
    whether the image could change although the stamp stays (`vague`)."""

    value: bytes
    vague: bool = False


class Stamps(NamedTuple):
    """The stamps of n images: values (n, 2) uint64 and vague (n,) bool."""

    values: np.ndarray
    vague: np.ndarray


class Reader(ABC):
    """The N images of one source, in a fixed order. It goes to other processes, which read as well: it holds no open file.

    Attributes: names, all distinct, with "/" between folders; labels, one class index an image (-1: no class), None where the
    source has no classes; class_names, in label order, None where labels are numbers alone.
    """

    names: Sequence[str]
    labels: Sequence[int] | None = None
    class_names: Sequence[str] | None = None

    @abstractmethod
    def open(self, index: int) -> bytes | np.ndarray:
        """An image: the content of its file (PNG, JPEG, …), or its pixels, (H, W) or (H, W, 3) of uint8.

        Raises: OSError for one that cannot be had.
        """

    def stamp(self, index: int) -> Stamp | None:
        """What says, without reading the image, that it is the one that was read before; raises OSError for one that is not there.

        None for all images of a source (as here) where nothing says so: every run then opens each of them once to know it.
        """
        return None

    def stamps(self, indices: Iterable[int]) -> Stamps:
        """The stamps of some images, of a source that has them."""
        found = [self.stamp(index) for index in indices]
        return Stamps(pairs(each.value for each in found), np.array([each.vague for each in found], bool))

    def load(self, index: int) -> tuple[bytes | np.ndarray, Stamp | None]:
        """An image, and its stamp when it was read.

        Raises: OSError as `open`, and for an image that changes meanwhile.
        """
        before = self.stamp(index)
        content = self.open(index)
        if self.stamp(index) != before:
            raise OSError(EIO, "the image changes while it is read", self.names[index])
        return content, before

    def path(self, index: int) -> str | None:
        """The file that holds this image and nothing else; None where there is none."""
        return None
