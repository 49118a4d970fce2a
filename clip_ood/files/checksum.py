"""Checksums of files: those that were published, and those of a first download, which are kept beside the file."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from clip_ood.errors import UserError

BLOCK = 1 << 20  # bytes read at a time


@dataclass(frozen=True)
class Checksum:
    """A file's expected checksum: digits of a hashlib `algorithm` (or the first of them, at least eight), and their source."""

    algorithm: str
    digits: str
    origin: str = "published is"

    def check(self, path: Path) -> None:
        """Raises ValueError for a file with another checksum, and names both."""
        found = hexdigest(path, self.algorithm)
        if not found.startswith(self.digits):
            raise UserError(f"the file has the {self.algorithm.upper()} checksum {found}, {self.origin} {self.digits}")


def hexdigest(path: Path, algorithm: str) -> str:
    """Returns the digits of a file's checksum."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def note_of(path: Path) -> Path:
    """Returns the file beside `path` that holds its checksum, in the form that `sha256sum --check` takes."""
    return path.with_name(f"{path.name}.sha256")


def recorded(path: Path) -> Checksum | None:
    """Returns the checksum of the first download of `path`, or None if none was recorded.

    Raises: ValueError for a note that holds no checksum.
    """
    note = note_of(path)
    if not note.is_file():
        return None
    found = re.match(r"[0-9a-f]{64}\b", note.read_text(encoding="utf-8", errors="replace"))
    if found is None:
        raise UserError(f"{note} holds no SHA-256 checksum: remove it, and the next download is recorded anew")
    origin = f"that of the first download, noted in {note} (remove that if its publisher has changed the file), is"
    return Checksum("sha256", found[0], origin)


def record(path: Path) -> Path:
    """Writes down the checksum of a file that was downloaded for the first time, and returns where."""
    note = note_of(path)
    note.write_text(f"{hexdigest(path, 'sha256')}  {path.name}\n", encoding="utf-8")
    return note
