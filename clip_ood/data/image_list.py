"""A set of images as a list, wherever they lie: files, members of tar shards, or arrays in memory."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from clip_ood.data import shards
from clip_ood.data.corruptions import Corruption
from clip_ood.data.sources import hides_changes, of_pixels, read_whole, real_folder, real_path, stamp
from clip_ood.errors import ConfigError
from clip_ood.features.identity import SIZE, identity_of, pairs
from clip_ood.files.pictures import decode


@dataclass(frozen=True)
class Loaded:
    """An image as it was read: what tells it, what its file holds and what tells that file (None in memory), and the picture on
    demand."""

    identity: bytes
    content: bytes | None
    stamp: bytes | None
    picture: Callable[[], Image.Image]


@dataclass(frozen=True)
class ImageList:
    """N images, in a fixed order.

    Attributes: names, the paths relative to `root`; labels, a class index each (-1: none), None for a flat folder;
    class_names, in label order where folders name them; pixels or members, of images that are no files of their own;
    corruption, what is done to each after decoding.
    """

    name: str
    root: Path
    names: tuple[str, ...]
    labels: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None
    pixels: Sequence | None = None
    members: tuple[shards.Member, ...] | None = None
    corruption: Corruption | None = None

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Image.Image:
        """The image as 8-bit RGB; raises what reading raises."""
        if self.pixels is not None:
            return self._corrupted(index, _of_array(self.pixels[index]))
        path, inside = self._place(index)
        return self._picture(index, read_whole(path, *inside)[0])

    def load(self, index: int) -> Loaded:
        """The image, not decoded yet. Raises: OSError for a file that cannot be had."""
        if self.pixels is not None:
            pixels = self.pixels[index]
            return Loaded(self._after_corruption(index, of_pixels(pixels)), None, None, lambda: self.read(index))
        path, inside = self._place(index)
        read, state = read_whole(path, *inside)
        content = identity_of(read)
        known_by = stamp(real_path(str(path)), state, *inside)
        return Loaded(self._after_corruption(index, content), content, known_by, lambda: self._picture(index, read))

    def _place(self, index: int) -> tuple[Path, tuple[int, ...]]:
        """The file that an image lies in, and where in it: offset and size, nothing for the whole file."""
        if self.members is None:
            return self.root / self.names[index], ()
        member = self.members[index]
        return self.root / member.shard, (member.offset, member.size)

    def content(self, row: int) -> bytes:
        """What tells the content of an image's file, which is read: 16 bytes."""
        path, inside = self._place(row)
        return identity_of(read_whole(path, *inside)[0])

    def identities(self) -> np.ndarray | None:
        """What tells images in memory apart, (N, 2); None for files, which must be read first."""
        if self.pixels is None:
            return None
        return self.derived(pairs([of_pixels(pixels) for pixels in self.pixels]))

    def derived(self, contents: np.ndarray) -> np.ndarray:
        """What tells the images apart, (N, 2), of what tells their sources: the same but for corrupted images."""
        if self.corruption is None:
            return contents
        sources = contents.astype("<u8").tobytes()
        return pairs(
            [self._after_corruption(row, sources[row * SIZE : (row + 1) * SIZE]) for row in range(len(self.names))]
        )

    def stamps(self, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Of these rows (None: all): what each image's file is known by, (n, 2), and whether a change of it could go unnoticed,
        (n,) bool.

        Raises: ConfigError for a file that is not there.
        """
        real_folder.cache_clear()  # links may lead elsewhere by now
        states: dict[str, os.stat_result] = {}
        root, vague, found = str(self.root), [], []
        try:
            for row in range(len(self.names)) if rows is None else rows.tolist():
                if self.members is None:
                    path, inside = os.path.join(root, self.names[row]), ()
                    state = os.stat(path)
                else:
                    member = self.members[row]
                    path, inside = os.path.join(root, member.shard), (member.offset, member.size)
                    state = states.get(path) or states.setdefault(path, os.stat(path))
                vague.append(hides_changes(state))
                found.append(stamp(real_path(path), state, *inside))
        except OSError as error:
            raise ConfigError(f"Image set {self.name}: {error.filename} cannot be had ({error.strerror})") from error
        return pairs(found), np.array(vague, bool)

    def _after_corruption(self, index: int, identity: bytes) -> bytes:
        """The identity of an image after its corruption, whose noise is drawn by the image's name."""
        if self.corruption is None:
            return identity
        return identity_of(identity, *map(str, self.corruption.key), self.names[index])

    def _picture(self, index: int, content: bytes) -> Image.Image:
        return self._corrupted(index, decode(io.BytesIO(content)))

    def _corrupted(self, index: int, image: Image.Image) -> Image.Image:
        return image if self.corruption is None else self.corruption(image, self.names[index])

    def subset(self, keep: Sequence[int]) -> ImageList:
        """The images at the positions `keep`, in that order."""
        labels = None if self.labels is None else tuple(self.labels[i] for i in keep)
        pixels = None if self.pixels is None else self.pixels[list(keep)]
        members = None if self.members is None else tuple(self.members[i] for i in keep)
        return replace(self, names=tuple(self.names[i] for i in keep), labels=labels, pixels=pixels, members=members)


def balanced(images: ImageList, per_class: int, seed: int) -> list[int]:
    """Positions of a seeded draw of `per_class` images a class (all of a class that has fewer), in order."""
    taken: dict[int, int] = {}
    keep = []
    for index in sorted(range(len(images)), key=lambda i: lot(seed, images.names[i])):
        label = images.labels[index]
        if taken.get(label, 0) < per_class:
            taken[label] = taken.get(label, 0) + 1
            keep.append(index)
    return sorted(keep)


def lot(seed: int, name: str) -> bytes:
    """The lot that an image draws: sorting by it is a seeded shuffle that new images don't upset."""
    return hashlib.blake2b(f"{seed}:{name}".encode("utf-8", "surrogateescape"), digest_size=8).digest()


def _of_array(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels).convert("RGB")
