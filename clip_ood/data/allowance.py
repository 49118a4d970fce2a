"""Bounds what an archive from elsewhere may unpack to: a small file must not fill the disk or the memory."""

from __future__ import annotations

import shutil
from pathlib import Path

from clip_ood.errors import UserError

RATIO = 100  # times its own size that an archive may unpack to: of image sets, labels shrink most, to a tenth or so
SLACK = 1 << 26  # bytes that any archive may unpack to
MOST_MEMBERS = 5_000_000  # ImageNet has 1.3 million


class UnsafeArchive(UserError):
    """An archive has a member that would be written outside its folder, or it unpacks to more than it may."""


class Allowance:
    """How much an archive may still unpack to, given its own size and the room on the disk."""

    def __init__(self, archive: Path, folder: Path) -> None:
        size, self.room = archive.stat().st_size, shutil.disk_usage(folder).free
        self.most, self.bytes, self.members = max(RATIO * size, SLACK), 0, 0
        self.about = f"the archive has {size:,} bytes"

    def take(self, name: str, size: int) -> None:
        """Counts a member, or a block of one. Raises: UnsafeArchive."""
        self.bytes += size
        self.members += 1
        if self.bytes > self.most:
            raise UnsafeArchive(
                f"{self.about} and would unpack to {self.bytes:,} or more (up to {name}), over {RATIO} times as many: nothing of it "
                "was kept"
            )
        if self.bytes > self.room:
            raise UnsafeArchive(
                f"the archive unpacks to {self.bytes:,} bytes or more, and the disk has room for {self.room:,}"
            )
        if self.members > MOST_MEMBERS:
            raise UnsafeArchive(f"the archive holds more than {MOST_MEMBERS:,} members: nothing of it was kept")
