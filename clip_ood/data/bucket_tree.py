"""Lists what lies at an address as the folder that it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from posixpath import splitext

from clip_ood.data.archive_tree import Tree
from clip_ood.data.readers.objects import Objects
from clip_ood.errors import ConfigError
from clip_ood.files.pictures import SUFFIXES
from clip_ood.files.remote.address import Address
from clip_ood.files.remote.listing import Listed, files_below, with_details


def in_bucket(set_name: str, address: Address) -> Tree:
    """Lists the files at an address; the server is asked once in a process.

    Raises: ConfigError for a server that refuses or does not answer, and for a file in a folder without a name.
    """
    try:
        listed = _listed(address)
    except OSError as error:
        raise ConfigError(f"Image set {set_name}: {address} cannot be listed: {error.strerror or error}") from None
    if nameless := next((file.address for name, file in listed.items() if name.startswith("/")), None):
        raise ConfigError(
            f"Image set {set_name}: {nameless} lies in a folder without a name (//) in {address}, which can be no class: rename the object"
        )
    folders = sorted({name.split("/", 1)[0] for name in listed if "/" in name})

    def reader(names: Sequence[str], *classes: Sequence | None) -> Objects:
        return Objects([listed[name] for name in names], *classes)

    return Tree(sorted(listed), folders, reader)


@cache
def _listed(address: Address) -> dict[str, Listed]:
    files = list(files_below(address))
    images = [file for file in files if splitext(file.name)[1].lower() in SUFFIXES]
    return {file.name: file for file in files} | {file.name: file for file in with_details(images)}
