"""Tells archives of images by their names, and paths that go on inside of one: photos.zip/train."""

from __future__ import annotations

from pathlib import Path

from clip_ood.files.regular_file import special
from clip_ood.files.remote.address import Address
from clip_ood.files.remote.listing import kind

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


def archive_of(path: str | Path | Address) -> tuple[Path | Address, str] | None:
    """Returns the archive that a path names or goes on inside of, and the folder in it ("" for all of it); None without one.

    Of an address, the name alone tells.

    >>> archive_of("photos/cats")
    >>> archive_of(Address("s3", "photos/cats.zip/white"))
    (Address(protocol='s3', path='photos/cats.zip'), 'white')
    >>> archive_of(Address("https", "example.org/cats.zip/all%20white"))[1]
    'all white'
    """
    if isinstance(path, Address):
        found = next((part for part in (path, *path.parents[:-1]) if part.name.lower().endswith(ARCHIVES)), None)
        return None if found is None else (found, path.unquoted(path.path[len(found.path) :]).strip("/"))
    path = Path(path)
    for part in (path, *path.parents):
        if part.name.lower().endswith(ARCHIVES) and not part.is_dir() and part.exists():
            return part, "" if part == path else path.relative_to(part).as_posix()
    return None


def is_folder(path: Path | Address) -> bool:
    """Says whether a path or address names a folder, or an archive that stands for one. Raises: OSError, of an address."""
    if isinstance(path, Address):
        archive = archive_of(path)
        return kind(path) == "folder" if archive is None else kind(archive[0]) == "file"
    return path.is_dir() or archive_of(path) is not None


def is_file(path: Path | Address) -> bool:
    """Says whether a file is at a path or address. Raises: OSError, of an address."""
    return kind(path) == "file" if isinstance(path, Address) else path.is_file()


def exists(path: Path | Address) -> bool:
    """Says whether a file or folder is at a path or address, but no pipe or device. Raises: OSError, of an address."""
    return kind(path) is not None if isinstance(path, Address) else path.exists() and special(path) is None
