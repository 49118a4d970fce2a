"""Reads image sets in shards, tar or zip files in webdataset's layout; the place of each image is known, so that one seek reads it.

A sample's files share their name up to the first dot after the last slash: `0007.jpg` and its label number `0007.cls`.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from clip_ood.data.member import DamagedArchive, Member
from clip_ood.data.members import is_none, members_of
from clip_ood.data.readers.inflated import inflated
from clip_ood.data.readers.on_disk import Place
from clip_ood.data.readers.packed import Packed
from clip_ood.errors import ConfigError
from clip_ood.files.pictures import SUFFIXES

LABEL = ".cls"
LONGEST_LABEL = 32  # bytes, deflated or not


class Shards(Packed):
    """The images of shards, named "shard/member"; `passed_over` are members that belong to no image."""

    def __init__(
        self,
        names: Sequence[str],
        places: Sequence[Place],
        labels: Sequence[int] | None = None,
        passed_over: Sequence[str] = (),
    ) -> None:
        super().__init__(places, names, labels)
        self.passed_over = passed_over


def read_shards(set_name: str, paths: list[Path]) -> Shards:
    """Lists the images of all shards, in their order, from the headers alone; no image is read.

    Raises: ConfigError, naming shard, member and reason, for a file that is no whole archive, for a sample with
    several images or labels, for an image that is a link, and for labels that are missing, are no numbers, or have no image.
    """
    names, places, labels, others = [], [], [], []
    for path in paths:
        where = f"Image set {set_name}: {path}"
        try:
            shard = _Shard(path, where)
        except DamagedArchive as error:
            raise ConfigError(f"{where} {is_none(path)}: {error}") from None
        except OSError as error:
            raise ConfigError(f"{where} cannot be read ({error.strerror or error})") from error
        names += [f"{path.name}/{name}" for name, _ in shard.images.values()]
        places += [place for _, place in shard.images.values()]
        labels += [shard.labels[key][1] if key in shard.labels else None for key in shard.images]
        others += [f"{path.name}/{name}" for key, name in shard.others.items() if key not in shard.images]
    given = {label for label in labels if label is not None}
    if given and None in labels:
        raise ConfigError(f"Image set {set_name}: {names[labels.index(None)]} has no label ({LABEL}), others have one")
    return Shards(tuple(names), tuple(places), tuple(labels) if given - {-1} else None, tuple(others))


def is_image(member: Member) -> bool:
    """Says whether a member of an archive is an image by its name."""
    return posixpath.splitext(member.name)[1].lower() in SUFFIXES and not member.is_folder


class _Shard:
    """The samples of a tar file by their key: images (name, place), labels (name, number), and one other file of each."""

    def __init__(self, path: Path, where: str) -> None:
        self.where = where
        self.images: dict[str, tuple[str, Place]] = {}
        self.labels: dict[str, tuple[str, int]] = {}
        self.others: dict[str, str] = {}
        labels = [member for member in members_of(path) if self._take(member)]
        if labels:
            with open(labels[0].place.path, "rb") as file:
                for member in labels:
                    self._add(self.labels, member.name, self._label(file, member.name, member.place))
        if not self.images:
            raise ConfigError(f"{where} holds no images (looked for {', '.join(sorted(SUFFIXES))})")
        if (key := next((key for key in self.labels if key not in self.images), None)) is not None:
            beside = f", only {self.others[key]}, whose name is not that of an image" if key in self.others else ""
            raise ConfigError(f"{where}, {self.labels[key][0]}: this label has no image beside it{beside}")

    def _take(self, member: Member) -> bool:
        """Notes an image, or another file, and says whether it is a label."""
        if member.is_folder:
            return False
        is_label = member.name.lower().endswith(LABEL)
        if not (is_label or is_image(member)):
            self.others.setdefault(_key(member.name), member.name)
            return False
        if member.fault is not None:
            raise ConfigError(f"{self.where}, {member.name}: {member.fault}")
        if not is_label:
            self._add(self.images, member.name, member.place)
        return is_label

    def _add(self, samples: dict, name: str, what: Place | int) -> None:
        key = _key(name)
        if key not in samples:
            samples[key] = name, what
            return
        first, _ = samples[key]
        if first == name:
            raise ConfigError(f"{self.where} holds {name} twice")
        raise ConfigError(
            f"{self.where} holds {first} and {name}, which are of one sample: a sample's name ends at its first dot, and it has "
            "one image and one label. Give each image a name of its own before the first dot and leave masks out, or unpack the "
            "shard and name the folder"
        )

    def _label(self, file: BinaryIO, name: str, place: Place) -> int:
        file.seek(place.offset)
        content = file.read(min(place.size, LONGEST_LABEL))
        if place.checksum is not None:
            try:
                content = inflated(content, place.inflates_to, place.checksum)
            except ValueError as error:
                raise ConfigError(f"{self.where}, {name}: it is damaged in its archive ({error})") from None
        if re.fullmatch(rb"\s*(-1|\d{1,18})\s*", content) is None:
            raise ConfigError(f"{self.where}, {name}: expected a label number, got {content[:20]!r}")
        return int(content)


def _key(name: str) -> str:
    folder, file = posixpath.split(posixpath.normpath(name))
    return posixpath.join(folder, file.split(".", 1)[0])
