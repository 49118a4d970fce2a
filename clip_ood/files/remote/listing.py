"""Lists what lies at an address, in the order of names, with the size and the version of each file."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from clip_ood.files.hidden import is_hidden
from clip_ood.files.remote.address import WEB, Address
from clip_ood.files.remote.ahead import ahead
from clip_ood.files.remote.file_systems import file_system
from clip_ood.files.remote.patience import LIST, TRIES, asked, patiently

VERSIONS = (  # what tells two contents of one address apart, the best first, as file systems call it
    *("md5Hash", "ETag", "etag", "generation", "blob_id", "LastModified", "last_modified", "Last-Modified", "updated"),
    *("mtime", "created"),
)
DEEPEST = 200  # folders in folders


class Listed(NamedTuple):
    """A file at an address: its name below the one that was listed, its size in bytes, and its version (None and "": not known).

    The key in//a.jpg has the name /a.jpg below in: it lies in a folder without a name.
    """

    name: str
    address: Address
    size: int | None = None
    version: str = ""


class Found(NamedTuple):
    """What is at an address: a folder, or a file of this size and version."""

    is_folder: bool
    size: int | None = None
    version: str = ""


def find(address: Address, tries: int = TRIES) -> Found | None:
    """Returns what is at an address; None if nothing is. On the web, an address that ends in / is a folder, its page of links.

    Raises: OSError for a server that refuses or does not answer.
    """
    try:
        about = asked(address, "info", tries=tries)
    except FileNotFoundError:
        return None
    is_folder = address.path.endswith("/") if address.protocol in WEB else about["type"] == "directory"
    return Found(is_folder, about.get("size"), version_of(about))


@cache
def kind(address: Address, process: int | None = None) -> str | None:
    """Returns "folder" or "file", whichever is at an address, or None; a server is asked once in a process. Raises: as `find` does."""
    if process is None:
        return kind(address, os.getpid())
    found = find(address, tries=3)
    return found and ("folder" if found.is_folder else "file")


def files_below(address: Address) -> Iterator[Listed]:
    """Yields the files below a folder in the order of their names, but for hidden ones; no more than one folder is held in memory, and
    of S3 no more than a thousand files.

    Raises: FileNotFoundError, PermissionError, and OSError for a server that does not answer.
    """
    return _in_pages(address) if address.protocol == "s3" else _in_folders(address, "", 0)


def with_details(files: Iterable[Listed]) -> Iterator[Listed]:
    """Yields files with their size and version, which web servers do not list, but tell of each file.

    A file that is gone meanwhile stays without. Raises: as `find` does.
    """

    def detailed(file: Listed) -> Listed:
        if file.version:
            return file
        found = find(file.address)
        return file if found is None else file._replace(size=found.size, version=found.version)

    return ahead(detailed, files)


def version_of(about: Mapping[str, Any]) -> str:
    """Returns the version of a file of which fsspec tells this.

    >>> version_of({"ETag": '"5d41"', "LastModified": "today"})
    '5d41'
    """
    found = next((about[key] for key in VERSIONS if about.get(key) is not None), "")
    return str(found.timestamp() if isinstance(found, datetime) else found).strip('"')


def _in_pages(address: Address) -> Iterator[Listed]:
    """Yields what S3 lists, a page after the other, which is in the order of keys."""
    fs, _ = file_system(address)
    bucket, inside, _ = fs.split_path(address.path)
    prefix = f"{inside}/" * bool(inside)
    more: dict[str, str] = {}
    while True:
        ask = {"Bucket": bucket, "Prefix": prefix, **fs.req_kw, **more}
        page = patiently(lambda ask=ask: fs.call_s3("list_objects_v2", **ask, timeout=120), address)
        for about in page.get("Contents", ()):
            name = about["Key"].removeprefix(prefix)
            if name and not name.endswith("/") and not is_hidden(name):
                yield Listed(name, replace(address, path=f"{address.path}/{name}"), about["Size"], version_of(about))
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def _in_folders(address: Address, inside: str, depth: int) -> Iterator[Listed]:
    """Yields what other file systems list, folder by folder."""
    entries = (_linked if address.protocol in WEB else _entries)(address)
    for file in sorted(entries, key=lambda entry: entry.name):
        if is_hidden(file.name) or not file.name.strip("./"):
            continue
        if not file.name.endswith("/"):
            yield file._replace(name=inside + file.name)
        elif depth < DEEPEST:
            yield from _in_folders(file.address, inside + file.name, depth + 1)


def _linked(address: Address) -> Iterator[Listed]:
    """Yields the files and folders of a page of the web."""
    from clip_ood.files.remote.links import linked

    return itertools.starmap(Listed, linked(address).items())


def _entries(address: Address) -> Iterator[Listed]:
    """Yields the files and folders that lie directly in a folder; the names of folders end in /."""
    path = file_system(address)[1].rstrip("/")
    for about in asked(address, "ls", size=LIST, detail=True):
        whole = about["name"].rstrip("/")
        if whole != path:  # a folder may list itself
            name = whole.rpartition("/")[2] + "/" * (about["type"] == "directory")
            yield Listed(name, address / name, about.get("size"), version_of(about))
