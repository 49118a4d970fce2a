"""Tells archives of images by their names, and paths that go on inside of one: photos.zip/train."""

from __future__ import annotations

from pathlib import Path

ZIP = ".zip"
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")  # tar files that are compressed as a whole
ARCHIVES = (ZIP, ".tar", *PACKED)
OTHERS = (
    ".7z",
    ".rar",
    ".tar.zst",
    ".tzst",
    ".tar.lz4",
    ".tar.z",
    ".gz",
    ".bz2",
    ".xz",
    ".zst",
)  # packed in ways that are not read


def archive_of(path: str | Path) -> tuple[Path, str] | None:
    """Returns the archive that a path names or goes on inside of, and the folder in it ("" for all of it); None without one.

    >>> archive_of("photos/cats")
    """
    path = Path(path)
    for part in (path, *path.parents):
        if part.name.lower().endswith(ARCHIVES) and not part.is_dir() and part.exists():
            return part, "" if part == path else path.relative_to(part).as_posix()
    return None


def is_folder(path: Path) -> bool:
    """Says whether a path names a folder, or an archive that stands for one."""
    return path.is_dir() or archive_of(path) is not None
