"""Image sets in tar shards (webdataset's layout): where each image lies, so that any of them is read by one seek.

A sample's files share their name up to the first dot after the last slash: `0007.jpg` and its label number `0007.cls`.
"""

from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from clip_ood.reading import SUFFIXES
from configs.errors import ConfigError


class Member(NamedTuple):
    """Some bytes of a file: `size` of them from `offset` of the shard `shard`."""

    shard: str
    offset: int
    size: int


class Index(NamedTuple):
    """The images of shards, in their order: names "shard/member", where each lies, and labels where .cls files are."""

    names: tuple[str, ...]
    members: tuple[Member, ...]
    labels: tuple[int, ...] | None


def index(set_name: str, paths: list[Path]) -> Index:
    """Reads the headers of all shards, which lie in one folder; no image is read.

    Raises: ConfigError, naming shard and member, for what is no uncompressed tar, an image that stands there twice, and
    for labels that are missing or no numbers.
    """
    names, members, labels = [], [], []
    for path in paths:
        found = _images(set_name, path)
        names += [f"{path.name}/{name}" for name, _, _ in found]
        members += [member for _, member, _ in found]
        labels += [label for _, _, label in found]
    if all(label is None for label in labels):
        return Index(tuple(names), tuple(members), None)
    if None in labels:
        raise ConfigError(f"Image set {set_name}: {names[labels.index(None)]} has no label (.cls), others have one")
    return Index(tuple(names), tuple(members), tuple(labels))


def _images(set_name: str, path: Path) -> list[tuple[str, Member, int | None]]:
    images: dict[str, Member] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if not info.isreg() or info.sparse is not None:
                    continue
                if info.name in images:
                    raise ConfigError(f"Image set {set_name}: {path} holds {info.name} twice")
                if PurePosixPath(info.name).suffix.lower() in SUFFIXES:
                    images[info.name] = Member(path.name, info.offset_data, info.size)
                elif info.name.endswith(".cls"):
                    labels[_key(info.name)] = _label(set_name, path, info.name, tar.extractfile(info).read())
    except (tarfile.TarError, OSError) as error:
        raise ConfigError(f"Image set {set_name}: {path} is no whole, uncompressed tar file ({error})") from error
    return [(name, member, labels.get(_key(name))) for name, member in images.items()]


def _key(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.split(".", 1)[0]


def _label(set_name: str, path: Path, name: str, content: bytes) -> int:
    try:
        return int(content)
    except ValueError:
        raise ConfigError(
            f"Image set {set_name}: {path}, {name}: expected a label number, got {content[:20]!r}"
        ) from None
