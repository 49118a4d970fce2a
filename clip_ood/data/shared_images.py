"""Images that two sets of a run would share, however lists, folders and links lead to them."""

from __future__ import annotations

import os
from itertools import combinations

from clip_ood.config.checks import may_share, option_of
from clip_ood.data.image_list import ImageList
from clip_ood.errors import ConfigError

Folder = tuple[int, int]  # device and inode


def check_apart(images: dict[str, ImageList]) -> None:
    """Raises ConfigError where a file is an image of two sets, by key, that must have none in common: how many, and the first."""
    listed = {key: each for key, each in images.items() if each.pixels is None and each.members is None and len(each)}
    folders = {key: _folders(each) for key, each in listed.items()}
    for one, other in combinations(listed, 2):
        common = set(folders[one].values()) & set(folders[other].values())
        if not common or may_share(one, other):
            continue
        theirs = set(_files(listed[one], folders[one], common))
        if shared := [name for file, name in _files(listed[other], folders[other], common).items() if file in theirs]:
            raise ConfigError(
                f"{len(shared)} of {len(listed[other])} images of {option_of(other)} are images of {option_of(one)} as well ({shared[0]}): an "
                "image that is scored as one must not be taken for the other. Take them out of one of both"
            )


def _folders(images: ImageList) -> dict[str, Folder]:
    """Every folder that images lie in, as it is spelled, and which it is: the same one by any link or spelling."""
    root = str(images.root)
    found = {}
    for spelled in {os.path.dirname(name) for name in images.names}:
        state = os.stat(os.path.join(root, spelled))
        found[spelled] = (state.st_dev, state.st_ino)
    return found


def _files(images: ImageList, folders: dict[str, Folder], common: set[Folder]) -> dict[tuple[Folder, str], str]:
    """The images in some of the folders: their names in the set by folder and file name."""
    found = {}
    for name in images.names:
        spelled, file = os.path.split(name)
        if (folder := folders[spelled]) in common:
            found[folder, file] = name
    return found
