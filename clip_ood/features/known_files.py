"""Remembers which content each file was found to have, so that the file is not read again."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from clip_ood.features.entries import Entries
from clip_ood.features.segment import StoreError
from clip_ood.files.cache import cache
from clip_ood.terminal.shown import say

FILES = "files"  # the folder under a root
FACTOR = 8  # segments are this many times as large as others, because an entry has only 40 bytes


class KnownFiles:
    """Contents by stamp, in the folder `files` under a root, or in the user's cache if that folder cannot be written.

    A stamp (16 bytes) identifies a file by its path, size, times and inode, a content by its bytes; both are (N, 2) uint64 here.
    """

    def __init__(self, root: Path) -> None:
        self.places = [Entries(folder, factor=FACTOR) for folder in (cache() / FILES, root / FILES)]
        self._told = False

    def refresh(self) -> None:
        for place in self.places:
            place.refresh()

    def contents(self, stamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (N, 2) contents, with zeros where none is known, and (N,) bool: which are known."""
        contents, known = np.zeros((len(stamps), 2), np.uint64), np.zeros(len(stamps), bool)
        for place in self.places:
            there = np.flatnonzero(~known)
            there = there[place.has(stamps[there], ["identity"])]
            if len(there):
                rows = place.rows(stamps[there], ["identity"])["identity"]
                contents[there] = rows.take(torch.arange(len(there))).numpy().view(np.uint64)
                known[there] = True
        return contents, known

    def forget(self, stamps: np.ndarray) -> None:
        """Forgets the files (n, 2), as if they had not been read, as far as the store can be written."""
        for place in self.places:
            with suppress(StoreError):
                place.remove(stamps)

    def remember(self, stamps: np.ndarray, contents: np.ndarray, name: str = "") -> None:
        """Keeps the contents of the files with these stamps (n, 2).

        Raises: StoreError if not even the cache can be written, because then no process could find their features.
        """
        was, known = self.contents(stamps)
        new = ~known
        if len(stale := np.flatnonzero(known & (was != contents).any(axis=1))):
            self.forget(stamps[stale])  # they were remembered wrongly, or written again without any sign of it
            new[stale] = True
        if not new.any():
            return
        values = {"identity": torch.from_numpy(contents[new].view(np.int64).copy())}
        own, of_root = self.places
        try:
            of_root.add(stamps[new], values, name=name)
        except StoreError as error:
            try:
                own.add(stamps[new], values, name=name)
            except StoreError:
                raise error from error.__cause__
            if not self._told:
                say(f"{error}; what files hold is kept in {own.folder}")
            self._told = True

    def merge(self) -> None:
        for place in self.places:
            place.merge()
